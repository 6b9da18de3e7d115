"""Transfers shards of known sharding to the devices that own their matrices, and back.

Runs inside a shard_map. Leaves of one shape and sharding are one stack. For a mesh axis that shards
the matrices, one all-to-all splits the stack and joins the shards. For a mesh axis that replicates
them, every device slices its part of the stack, without communication. The results come back in
reverse order, by all-to-all and all-gather. Owners orthogonalise whole matrices without
communication.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from muon_jax._types import Solve
from muon_jax.mesh._slots import Cost, Slots, plan_slots, solve_slots
from muon_jax.mesh._specs import (
    Axes,
    MeshShape,
    Spec,
    axes_in,
    group_size,
    shard_shape,
    tracks_varying,
)
from muon_jax.mesh._stacks import Leaf, WireDtype, as_batches, as_leaves

Step: TypeAlias = tuple[Axes, int | None, int | None]
"""Mesh axes of one collective, and the leaf axis that they shard in `in_spec` and in `out_spec`."""


@dataclasses.dataclass(frozen=True)
class ShardedLeaf(Leaf):
    """A leaf and its shardings; equal leaves are transferred as one stack.

    Attributes:
      in_spec: its sharding.
      out_spec: the sharding of its result.
    """

    in_spec: Spec
    out_spec: Spec

    @property
    def fixed(self) -> set[str]:
        """The mesh axes that shard the batch; matrices are not transferred along them."""
        return {axis for place in self.batch_axes for axis in self.in_spec[place]}

    def feasible(self, mesh: MeshShape) -> "ShardedLeaf":
        """Returns the leaf, with `in_spec=out_spec` if the transfer between the two is impossible.

        Matrices of a sharded batch stay on their devices. So the result may only drop the minor
        mesh axes of a batch axis, and no mesh axis of the batch may shard its rows or columns.
        """
        kept = all(
            self.in_spec[place][: len(self.out_spec[place])] == self.out_spec[place]
            for place in self.batch_axes
        )
        matrix_axes = axes_in(_without(self.out_spec, self.batch_axes))
        steps = _steps(self, mesh, ())
        if kept and self.fixed.isdisjoint(matrix_axes) and _takes_minor_axes(self, steps):
            return self
        return dataclasses.replace(self, in_spec=self.out_spec)


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Equal leaves, and the collectives that transfer their matrices to the owners."""

    leaf: ShardedLeaf
    members: tuple[int, ...]
    steps: tuple[Step, ...]
    slots: Slots

    @property
    def owners(self) -> Axes:
        """The mesh axes that number the owners, the major one first."""
        return tuple(axis for axes, _, _ in self.steps for axis in axes)


def exchange_shards(
    shards: Sequence[Array],
    leaves: Sequence[ShardedLeaf],
    mesh: MeshShape,
    *,
    share: Collection[str],
    solve: Solve,
    cost: Cost,
    wire_dtype: WireDtype,
) -> list[Array]:
    """Orthogonalises sharded leaves.

    Args:
      shards: this device's shard of every leaf, by its `in_spec`.
      leaves: feasible leaves.
      mesh: the size of every mesh axis.
      share: the mesh axes over which matrices are distributed.
      solve: orthogonalises batches of matrices of any shapes.
      cost: the work of one matrix, for load balancing.
      wire_dtype: from (rows, cols) to a narrower dtype for communication, or None.

    Returns:
      This device's shard of every result, by the leaf's `out_spec`.
    """
    stacks = _stacks(leaves, mesh, share, cost)
    arrived = []
    for stack in stacks:
        members = jnp.stack([shards[member] for member in stack.members])
        batches = as_batches(members, stack.leaf.batch_axes)
        if stack.steps:
            batches = batches.astype(stack.leaf.dtype_for(wire_dtype))
        arrived.append(_to_owners(stack.slots.pad(batches), stack.steps, mesh))
    solved = solve_slots(
        arrived,
        [stack.leaf.view for stack in stacks],
        [stack.slots for stack in stacks],
        [stack.owners for stack in stacks],
        solve,
    )
    done: dict[int, Array] = {}
    for stack, slots in zip(stacks, solved, strict=True):
        batches = stack.slots.unpad(_from_owners(slots, stack.steps))
        results = _leaves(batches, stack, mesh).astype(stack.leaf.dtype)
        done |= {member: results[place] for place, member in enumerate(stack.members)}
    return [done[place] for place in range(len(shards))]


def _stacks(
    leaves: Sequence[ShardedLeaf], mesh: MeshShape, share: Collection[str], cost: Cost
) -> list[_Stack]:
    """Stacks equal leaves, and balances the load of all stacks with the same owners."""
    members: dict[ShardedLeaf, list[int]] = {}
    for place, leaf in enumerate(leaves):
        members.setdefault(leaf, []).append(place)
    by_owners: dict[Axes, list[tuple[ShardedLeaf, tuple[Step, ...]]]] = {}
    for leaf in members:
        steps = tuple(_steps(leaf, mesh, share))
        owners = tuple(axis for axes, _, _ in steps for axis in axes)
        by_owners.setdefault(owners, []).append((leaf, steps))
    stacks = []
    for owners, group in by_owners.items():
        counts, costs = [], []
        for leaf, _ in group:
            local = shard_shape(leaf.shape, leaf.in_spec, mesh)
            counts.append(len(members[leaf]) * math.prod(local[i] for i in leaf.batch_axes))
            costs.append(leaf.cost(cost))
        slots = plan_slots(counts, costs, group_size(owners, mesh))
        for (leaf, steps), each in zip(group, slots, strict=True):
            stacks.append(_Stack(leaf, tuple(members[leaf]), steps, each))
    return stacks


def _steps(leaf: ShardedLeaf, mesh: MeshShape, share: Collection[str]) -> list[Step]:
    """Plans the transfer to the owners: replicated mesh axes first, then minor before major."""
    there, back = (
        _places(_without(spec, leaf.batch_axes)) for spec in (leaf.in_spec, leaf.out_spec)
    )
    grouped: dict[tuple[int | None, int | None], list[str]] = {}
    for axis in dict.fromkeys((*there, *back, *mesh)):
        if axis in there or axis in back or (axis in share and axis not in leaf.fixed):
            grouped.setdefault((there.get(axis), back.get(axis)), []).append(axis)

    def order(step: Step) -> tuple[bool, int]:
        axes, held, _ = step
        return held is not None, -max(list(there).index(a) for a in axes) if axes[0] in there else 0

    return sorted(((tuple(axes), *ways) for ways, axes in grouped.items()), key=order)


def _takes_minor_axes(leaf: ShardedLeaf, steps: Sequence[Step]) -> bool:
    """Returns whether each step removes the minor mesh axes that remain in either spec."""
    there = [(axes, place) for axes, place, _ in steps]
    back = [(axes, place) for axes, _, place in steps]
    for spec, way in ((leaf.in_spec, there), (leaf.out_spec, back)):
        left = list(_without(spec, leaf.batch_axes))
        for axes, place in way:
            if place is not None:
                if left[place][-len(axes) :] != axes:
                    return False
                left[place] = left[place][: -len(axes)]
    return True


def _without(spec: Spec, places: Collection[int]) -> Spec:
    """Returns a spec that leaves these axes of the leaf unsharded."""
    return tuple(() if place in places else axes for place, axes in enumerate(spec))


def _places(spec: Spec) -> Mapping[str, int]:
    """Maps every mesh axis of a spec to the axis of the leaf that it shards."""
    return {axis: place for place, axes in enumerate(spec) for axis in axes}


def _leaves(batches: Array, stack: _Stack, mesh: MeshShape) -> Array:
    """Reshapes results to leaves, and gathers along the mesh axes that the batch drops."""
    leaf = stack.leaf
    spec = tuple(
        leaf.in_spec[place] if place in leaf.batch_axes else axes
        for place, axes in enumerate(leaf.out_spec)
    )
    shape = (len(stack.members), *shard_shape(leaf.shape, spec, mesh))
    results = as_leaves(batches, shape, leaf.batch_axes)
    for place in leaf.batch_axes:
        if dropped := leaf.in_spec[place][len(leaf.out_spec[place]) :]:
            results = _gather(results, dropped, place + 1)
    return results


def _to_owners(batches: Array, steps: Sequence[Step], mesh: MeshShape) -> Array:
    for axes, place, _ in steps:
        if place is None:
            size = len(batches) // group_size(axes, mesh)
            start = lax.axis_index(axes) * size
            batches = lax.dynamic_slice_in_dim(batches, start, size)
        else:
            batches = lax.all_to_all(batches, axes, 0, place + 1, tiled=True)
    return batches


def _from_owners(batches: Array, steps: Sequence[Step]) -> Array:
    for axes, _, place in reversed(steps):
        if place is None:
            batches = _gather(batches, axes, 0)
        else:
            batches = lax.all_to_all(batches, axes, place + 1, 0, tiled=True)
    return batches


def _gather(array: Array, axes: Axes, place: int) -> Array:
    to = "invarying" if tracks_varying(axes) else "varying"
    return lax.all_gather(array, axes, axis=place, tiled=True, to=to)
