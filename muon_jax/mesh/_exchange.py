"""Transfers the shards of a user's shard_map to the devices that own their matrices, and back.

Leaves of one shape and sharding are one stack. For a mesh axis that replicates the matrices, every
device slices its part of the stack, without communication. For a mesh axis that shards them, one
all-to-all splits the stack and joins the shards. The results come back in reverse order, by
all-to-all and all-gather. Owners orthogonalise whole matrices without communication.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
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

Step: TypeAlias = tuple[Axes, int | None]
"""Mesh axes of one collective, and the leaf axis that they shard."""


@dataclasses.dataclass(frozen=True)
class ShardedLeaf(Leaf):
    """A leaf and its sharding; equal leaves are transferred as one stack.

    Attributes:
      spec: its sharding, and that of its result.
    """

    spec: Spec


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
        return tuple(axis for axes, _ in self.steps for axis in axes)


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
      shards: this device's shard of every leaf.
      leaves: the leaves.
      mesh: the size of every mesh axis.
      share: the mesh axes over which matrices are distributed.
      solve: orthogonalises batches of matrices of any shapes.
      cost: the work of one matrix, for load balancing.
      wire_dtype: from (rows, cols) to a narrower dtype for communication, or None.

    Returns:
      This device's shard of every result.
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
        leaf, batches = stack.leaf, stack.slots.unpad(_from_owners(slots, stack.steps))
        shape = (len(stack.members), *shard_shape(leaf.shape, leaf.spec, mesh))
        results = as_leaves(batches, shape, leaf.batch_axes).astype(leaf.dtype)
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
        steps = _steps(leaf, mesh, share)
        owners = tuple(axis for axes, _ in steps for axis in axes)
        by_owners.setdefault(owners, []).append((leaf, steps))
    stacks = []
    for owners, group in by_owners.items():
        counts, costs = [], []
        for leaf, _ in group:
            local = shard_shape(leaf.shape, leaf.spec, mesh)
            counts.append(len(members[leaf]) * math.prod(local[i] for i in leaf.batch_axes))
            costs.append(leaf.cost(cost))
        slots = plan_slots(counts, costs, group_size(owners, mesh))
        for (leaf, steps), each in zip(group, slots, strict=True):
            stacks.append(_Stack(leaf, tuple(members[leaf]), steps, each))
    return stacks


def _steps(leaf: ShardedLeaf, mesh: MeshShape, share: Collection[str]) -> tuple[Step, ...]:
    """Plans the transfer to the owners: replicated mesh axes first. Batch axes stay sharded."""
    sharded = axes_in(leaf.spec)
    replicated = tuple(axis for axis in mesh if axis in share and axis not in sharded)
    places = [(axes, place) for place, axes in enumerate(leaf.spec)]
    return (
        *([(replicated, None)] if replicated else []),
        *((axes, place) for axes, place in places if axes and place not in leaf.batch_axes),
    )


def _to_owners(batches: Array, steps: Sequence[Step], mesh: MeshShape) -> Array:
    for axes, place in steps:
        if place is None:
            size = len(batches) // group_size(axes, mesh)
            start = lax.axis_index(axes) * size
            batches = lax.dynamic_slice_in_dim(batches, start, size)
        else:
            batches = lax.all_to_all(batches, axes, 0, place + 1, tiled=True)
    return batches


def _from_owners(batches: Array, steps: Sequence[Step]) -> Array:
    for axes, place in reversed(steps):
        if place is None:
            to = "invarying" if tracks_varying(axes) else "varying"
            batches = lax.all_gather(batches, axes, axis=0, tiled=True, to=to)
        else:
            batches = lax.all_to_all(batches, axes, place + 1, 0, tiled=True)
    return batches
