"""Decides which device owns which matrix: a static plan, made before anything is traced.

Every host computes the plan from shapes, shardings and a cost model alone, so all hosts agree on it
without a word between them. An owner is named by its coordinates along some mesh axes; devices that
differ along the other axes hold other matrices (a sharded batch axis) or repeat the same work.
"""

import dataclasses
import heapq
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from muon_jax.views._matrix_axes import MatrixAxes

Axes: TypeAlias = tuple[str, ...]
"""Names of mesh axes, the major one first."""

Spec: TypeAlias = tuple[Axes, ...]
"""For every axis of an array, the mesh axes that shard it."""

MeshShape: TypeAlias = Mapping[str, int]
"""The size of every mesh axis, in the order of the mesh."""

Cost: TypeAlias = Callable[[int, int], float]
"""Maps (rows, cols) to the work of orthogonalising one such matrix, in any unit."""


@dataclasses.dataclass(frozen=True)
class ShardedLeaf:
    """A leaf as the plan sees it; equal leaves are interchangeable.

    Args:
      shape: of the whole leaf, over all devices.
      dtype: the name of its dtype.
      view: which axes are rows and cols; the others are batch axes.
      held: the sharding in which it comes.
      wanted: the sharding in which the result must go.
    """

    shape: tuple[int, ...]
    dtype: str
    view: MatrixAxes
    held: Spec
    wanted: Spec

    @property
    def batch_axes(self) -> tuple[int, ...]:
        ndim = len(self.shape)
        matrix_axes = {axis % ndim for axis in self.view.rows + self.view.cols}
        return tuple(axis for axis in range(ndim) if axis not in matrix_axes)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """One entry along every batch axis: the least that an owner can take."""
        return tuple(1 if axis in self.batch_axes else n for axis, n in enumerate(self.shape))

    @property
    def batch_held(self) -> Spec:
        """`held` without what shards rows and cols."""
        return tuple(a if axis in self.batch_axes else () for axis, a in enumerate(self.held))

    @property
    def unit_held(self) -> Spec:
        """`held` without what shards the batch."""
        return tuple(() if axis in self.batch_axes else a for axis, a in enumerate(self.held))

    @property
    def unit_wanted(self) -> Spec:
        return tuple(() if axis in self.batch_axes else a for axis, a in enumerate(self.wanted))

    @property
    def batch_dropped(self) -> Spec:
        """What shards the batch in `held` and no longer in `wanted`."""
        pairs = zip(self.batch_held, self.wanted, strict=True)
        return tuple(held[len(wanted) :] for held, wanted in pairs)

    def settled(self) -> "ShardedLeaf":
        """Gives up a `held` from which results cannot return to `wanted` in one journey.

        Owners of a sharded batch stay where they are, so a batch axis can only lose its innermost
        mesh axes on the way, and none of its mesh axes may be wanted for rows or cols.
        """
        batch = {axis for axes in self.batch_held for axis in axes}
        loses_only = all(
            self.held[axis][: len(self.wanted[axis])] == self.wanted[axis]
            for axis in self.batch_axes
        )
        if loses_only and batch.isdisjoint(mesh_axes_in(self.unit_wanted)):
            return self
        return dataclasses.replace(self, held=self.wanted)


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
    """All matrices of equal leaves: what they have in common, and who owns how many.

    Args:
      leaf: any of the members.
      members: the positions of the members among all leaves.
      units: how many units of each member a device holds (or holds shards of).
      owners: the mesh axes whose coordinates name an owner.
      shares: for every owner, in the order of its coordinates, the range of units that it takes
        from all members laid end to end.
    """

    leaf: ShardedLeaf
    members: tuple[int, ...]
    units: int
    owners: Axes
    shares: tuple[range, ...] = ()

    @property
    def counts(self) -> np.ndarray:
        """How many units each owner takes."""
        return np.array([len(share) for share in self.shares])

    @property
    def stays(self) -> bool:
        """Every matrix is whole where it is, and no other device can take it."""
        return not self.owners


def plan_ownership(
    leaves: Sequence[ShardedLeaf], mesh: MeshShape, share: Collection[str], cost: Cost
) -> list[Bucket]:
    """Gathers equal leaves into buckets and gives every unit of them to an owner.

    Args:
      leaves: all leaves of one update, settled.
      mesh: the mesh that their shardings speak of.
      share: the mesh axes along which devices take work over from each other. Those that shard
        rows or cols do so in any case, and those that shard a batch axis never.
      cost: the work of one matrix.

    Returns:
      The buckets, in the order in which their first members come.
    """
    members: dict[ShardedLeaf, list[int]] = {}
    for position, leaf in enumerate(leaves):
        members.setdefault(leaf, []).append(position)
    buckets = [_bucket(leaf, tuple(where), mesh, share) for leaf, where in members.items()]
    taken = assign_units(
        [len(bucket.members) * bucket.units for bucket in buckets],
        [_unit_cost(bucket.leaf, cost) for bucket in buckets],
        [bucket.owners for bucket in buckets],
        mesh,
    )
    return [
        dataclasses.replace(bucket, shares=_ranges(counts))
        for bucket, counts in zip(buckets, taken, strict=True)
    ]


def assign_units(
    units: Sequence[int], costs: Sequence[float], owners: Sequence[Axes], mesh: MeshShape
) -> list[list[int]]:
    """Spreads units over owners so that the busiest device finishes early.

    The longest-processing-time rule: the costliest unit left goes to the least busy owner. Where
    all owners may take all units, none works longer than its even part and one unit, nor a third
    longer than under the best plan. Units with the fewest owners to choose from go first. Ties are
    broken by position, never by chance.

    Args:
      units: how many units each bucket has.
      costs: of one unit of each bucket.
      owners: the mesh axes whose coordinates name an owner of each bucket.
      mesh: the size of every mesh axis.

    Returns:
      For each bucket, how many units each owner takes.

    References:
        Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969.
    """
    load = np.zeros([mesh[axis] for axis in mesh])
    taken: list[list[int]] = [[] for _ in units]
    for group in sorted(set(owners), key=lambda group: (group_size(group, mesh), group)):
        elsewhere = tuple(place for place, axis in enumerate(mesh) if axis not in group)
        queue = [(busy, owner) for owner, busy in enumerate(load.max(elsewhere).ravel().tolist())]
        heapq.heapify(queue)
        buckets = [bucket for bucket in range(len(units)) if owners[bucket] == group]
        for bucket in sorted(buckets, key=lambda bucket: (-costs[bucket], bucket)):
            taken[bucket] = [0] * len(queue)
            for _ in range(units[bucket]):
                busy, owner = queue[0]
                heapq.heapreplace(queue, (busy + costs[bucket], owner))
                taken[bucket][owner] += 1
        work = sum(
            (np.multiply(taken[bucket], costs[bucket]) for bucket in buckets), np.zeros(len(queue))
        )
        load += work.reshape([mesh[axis] if axis in group else 1 for axis in mesh])
    return taken


def quintic_flops(rows: int, cols: int) -> int:
    """The cost of a matrix under an orthogonalizer that does not tell: only ratios matter."""
    short, long = sorted((rows, cols))
    return 4 * short**2 * long + 2 * short**3


def group_size(axes: Collection[str], mesh: MeshShape) -> int:
    """How many devices differ along these mesh axes alone."""
    return math.prod(mesh[axis] for axis in axes)


def owner_positions(owners: Axes, order: Axes, mesh: MeshShape) -> np.ndarray:
    """For every coordinate along the axes in `order`, the position of the owner found there."""
    positions = np.arange(group_size(owners, mesh)).reshape([mesh[axis] for axis in owners])
    missing = tuple(axis for axis in order if axis not in owners)
    positions = positions.reshape(positions.shape + (1,) * len(missing))
    positions = positions.transpose([(owners + missing).index(axis) for axis in order])
    return np.broadcast_to(positions, [mesh[axis] for axis in order]).ravel()


def mesh_axes_in(spec: Spec) -> set[str]:
    """All mesh axes along which an array is sharded."""
    return {axis for axes in spec for axis in axes}


def shard_shape(shape: Sequence[int], spec: Spec, mesh: MeshShape) -> tuple[int, ...]:
    """The shape of what one device holds of an array."""
    return tuple(
        size // group_size(sharding, mesh) for size, sharding in zip(shape, spec, strict=True)
    )


def ordered(axes: Collection[str], mesh: MeshShape) -> Axes:
    return tuple(axis for axis in mesh if axis in axes)


def _bucket(
    leaf: ShardedLeaf, members: tuple[int, ...], mesh: MeshShape, share: Collection[str]
) -> Bucket:
    fixed = mesh_axes_in(leaf.batch_held)
    matrix = mesh_axes_in(leaf.unit_held) | mesh_axes_in(leaf.unit_wanted)
    batch = math.prod(leaf.shape[axis] for axis in leaf.batch_axes)
    return Bucket(
        leaf=leaf,
        members=members,
        units=batch // group_size(fixed, mesh),
        owners=ordered((matrix | set(share)) - fixed, mesh),
    )


def _unit_cost(leaf: ShardedLeaf, cost: Cost) -> float:
    shapes = leaf.view.matrix_shapes(leaf.unit_shape)
    return sum(batch * cost(rows, cols) for batch, rows, cols in shapes)


def _ranges(counts: Sequence[int]) -> tuple[range, ...]:
    stops = np.cumsum(counts).tolist()
    return tuple(range(stop - count, stop) for stop, count in zip(stops, counts, strict=True))
