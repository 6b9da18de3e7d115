"""Distributes stacks of matrices by sharding constraints, where only the mesh is known.

Under `jit` the type of an array on Auto axes names its mesh but not its sharding. Leaves of one
shape are stacked, and constraints shard the batch axis of the stack over one mesh axis after
another, with all other axes unconstrained: XLA turns each constraint into at most one collective.
With a single constraint for all mesh axes it would gather whole stacks.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import listed, refused
from muon_jax._types import Solve
from muon_jax.mesh._barrier import propagating
from muon_jax.mesh._slots import Cost, Slots, plan_slots, solve_slots
from muon_jax.mesh._specs import Axes, group_size
from muon_jax.mesh._stacks import Leaf, WireDtype, as_batches, as_leaves
from muon_jax.views._matrix_axes import MatrixAxes

_OPEN = PartitionSpec.UNCONSTRAINED

_AXES_OF_BATCHES = frozenset({"expert", "experts", "ep", "layer", "layers", "stage", "pipe", "pp"})
"""Usual names of mesh axes that shard experts or layers; their matrices need no communication."""


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Leaves that are transferred together, and the devices that orthogonalise their matrices.

    Attributes:
      leaf: any of them.
      members: their positions among all leaves.
      slots: how many matrices each device owns.
      mesh: the mesh of the leaves.
      share: the mesh axes over which matrices are distributed.
    """

    leaf: Leaf
    members: tuple[int, ...]
    slots: Slots
    mesh: AbstractMesh
    share: Axes

    @property
    def sharded_axis(self) -> int:
        """The axis of the stack that is sharded over the owners."""
        axis = _even_axis(self.leaf, len(self.slots.counts))
        return 0 if axis is None else axis + 1

    @property
    def spec(self) -> PartitionSpec:
        """The sharding of the stack during orthogonalisation."""
        return PartitionSpec(*(None,) * self.sharded_axis, self.share or None)

    def to_owners(self, leaves: Sequence[Array], dtype: str) -> Array:
        """Stacks the leaves and transfers every matrix to its owner."""
        stack = jnp.stack([leaves[member].astype(dtype) for member in self.members])
        if not self.sharded_axis:
            stack = self.slots.pad(as_batches(stack, self.leaf.batch_axes))

        return shard_one_axis(stack, self.mesh, self.sharded_axis, self.share)

    def from_owners(self, stack: Array) -> Array:
        """Transfers results back; returns them as a stack of leaves."""
        stack = release_one_axis(stack, self.mesh, self.sharded_axis, self.share)
        if self.sharded_axis:
            return stack
        shape = (len(self.members), *self.leaf.shape)
        return as_leaves(self.slots.unpad(stack), shape, self.leaf.batch_axes)

    def batches(self, stack: Array) -> Array:
        """Reshapes the shard of one device to (matrices, *leaf with batch axes of one)."""
        return as_batches(stack, self.leaf.batch_axes) if self.sharded_axis else stack


def shard_one_axis(stack: Array, mesh: AbstractMesh, axis: int, share: Axes) -> Array:
    """Shards an axis over some mesh axes, and no other axis."""
    stack = propagating(stack, "forward")
    for count in range(1, len(share)):
        stack = _constrained(stack, mesh, axis, share[:count], _OPEN)
    return _constrained(stack, mesh, axis, share, None)


def release_one_axis(stack: Array, mesh: AbstractMesh, axis: int, share: Axes) -> Array:
    """Lets XLA choose the sharding again; the first axis, if it was sharded, is then whole."""
    # Slicing single leaves out of the first axis requires that axis to be unsharded.
    for count in reversed(range(axis > 0, len(share))):
        stack = _constrained(stack, mesh, axis, share[:count], _OPEN)
    return propagating(stack, "backward")


def share_for(share: Axes, batched: bool) -> Axes:
    """Puts the mesh axes first whose names say that they shard experts or layers."""
    if not batched:
        return share
    return tuple(sorted(share, key=lambda axis: axis not in _AXES_OF_BATCHES))


def _constrained(stack: Array, mesh: AbstractMesh, axis: int, share: Axes, others: Any) -> Array:
    spec = [others] * stack.ndim
    spec[axis] = share or None
    return lax.with_sharding_constraint(stack, NamedSharding(mesh, PartitionSpec(*spec)))


def solve_by_constraints(
    kinds: Sequence[Hashable],
    leaves: Sequence[Array],
    views: Sequence[MatrixAxes],
    like: Sequence[Array],
    *,
    mesh: AbstractMesh,
    share: Axes,
    solve: Solve,
    cost: Cost,
    wire_dtype: WireDtype,
) -> list[Array]:
    """Orthogonalises leaves on Auto axes.

    Args:
      kinds: equal for leaves that are probably sharded alike.
      leaves: the leaves.
      views: how each leaf is a batch of matrices.
      like: arrays whose shardings the results get.
      mesh: the mesh of their types.
      share: the mesh axes over which matrices are distributed.
      solve: orthogonalises batches of matrices of any shapes.
      cost: the work of one matrix, for load balancing.
      wire_dtype: from (rows, cols) to a narrower dtype for communication, or None.
    """
    devices = group_size(share, mesh.shape)
    divided = [axis for axis in share if mesh.shape[axis] > 1]
    gathered = _gathered(kinds, leaves, views, devices, mixed=len(divided) < 2)
    counts = [leaf.batch * len(members) for leaf, members in gathered]
    costs = [leaf.cost(cost) for leaf, _ in gathered]
    uneven = [i for i, (leaf, _) in enumerate(gathered) if _even_axis(leaf, devices) is None]
    slots = [Slots((count // devices,) * devices) for count in counts]
    planned = plan_slots([counts[i] for i in uneven], [costs[i] for i in uneven], devices)
    for place, each in zip(uneven, planned, strict=True):
        slots[place] = each
    stacks = [
        _Stack(leaf, tuple(members), each, mesh, share_for(share, bool(leaf.batch_axes)))
        for (leaf, members), each in zip(gathered, slots, strict=True)
    ]

    def work(arrays: list[Array]) -> list[Array]:
        batches = [stack.batches(array) for stack, array in zip(stacks, arrays, strict=True)]
        leaf_views = [stack.leaf.view for stack in stacks]
        solved = solve_slots(batches, leaf_views, slots, [each.share for each in stacks], solve)
        return [
            as_leaves(each, array.shape, stack.leaf.batch_axes) if stack.sharded_axis else each
            for stack, each, array in zip(stacks, solved, arrays, strict=True)
        ]

    specs = [stack.spec for stack in stacks]
    at_owners = [stack.to_owners(leaves, stack.leaf.dtype_for(wire_dtype)) for stack in stacks]
    on_every_device = jax.shard_map(
        work, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False
    )
    try:
        solved = on_every_device(at_owners)
    except ValueError as error:
        if "marked as manual" not in str(error):
            raise
        raise refused(
            "vmap maps over an axis that is sharded explicitly along one of the mesh axes "
            f"{listed(map(repr, share))}",
            "Make that mesh axis Auto, or pass distribute='off'",
        ) from error
    done: dict[int, Array] = {}
    for stack, result in zip(stacks, solved, strict=True):
        done |= dict(zip(stack.members, stack.from_owners(result), strict=True))
    return [
        with_sharding_of(array, done[place].astype(leaf.dtype))
        for place, (leaf, array) in enumerate(zip(leaves, like, strict=True))
    ]


def _gathered(
    kinds: Sequence[Hashable],
    leaves: Sequence[Array],
    views: Sequence[MatrixAxes],
    devices: int,
    *,
    mixed: bool,
) -> list[tuple[Leaf, list[int]]]:
    """Groups leaves into stacks.

    Leaves of one kind are probably sharded alike, so their stack needs the fewest collectives. If
    their count is no multiple of the devices, and `mixed` is True, all leaves of their shape form
    one stack, which needs less padding. On several mesh axes XLA would gather a stack of leaves
    with different shardings.
    """
    by_kind: dict[tuple[Leaf, Hashable], list[int]] = {}
    for place, (kind, leaf, view) in enumerate(zip(kinds, leaves, views, strict=True)):
        key = Leaf(tuple(leaf.shape), leaf.dtype.name, view), kind
        by_kind.setdefault(key, []).append(place)
    stacks: dict[tuple[Leaf, Hashable], list[int]] = {}
    for (leaf, kind), members in by_kind.items():
        even = _even_axis(leaf, devices) is not None or len(members) * leaf.batch % devices == 0
        together = mixed and not even
        stacks.setdefault((leaf, "" if together else kind), []).extend(members)
    return [(leaf, members) for (leaf, _), members in stacks.items()]


def _even_axis(leaf: Leaf, devices: int) -> int | None:
    """Returns the first batch axis whose size is a multiple of the devices, if there is one."""
    return next((axis for axis in leaf.batch_axes if leaf.shape[axis] % devices == 0), None)


def with_sharding_of(like: Array, result: Array) -> Array:
    """Returns the result with the sharding of another array, which is unknown while tracing.

    XLA gives both operands of a `select` one sharding. The barrier hides from XLA that the
    predicate is always False.
    """
    never = lax.optimization_barrier(jnp.zeros((), bool))
    return lax.select(never, like.astype(result.dtype), result)
