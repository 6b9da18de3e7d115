"""Says what travels together: the static plan of the collectives."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from muon_jax.mesh._ownership import (
    Axes,
    Bucket,
    MeshShape,
    Spec,
    group_size,
    mesh_axes_in,
    ordered,
    owner_positions,
    shard_shape,
)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What crosses the same mesh axes in the same dtype, to the owners or back.

    Args:
      crossed: mesh axes that shard every unit; its shards cross them.
      copies: the other axes that name an owner: devices along them hold equal shards.
      dropped: axes along which devices own different units of a batch that the result is to hold
        whole.
      wire: the name of the dtype that travels.
      specs: how the units of each bucket are sharded, in the order of packing.
      mesh: the size of every mesh axis.
    """

    crossed: Axes
    copies: Axes
    dropped: Axes
    wire: str
    specs: Mapping[Bucket, Spec]
    mesh: MeshShape

    def shard_shape(self, bucket: Bucket) -> tuple[int, ...]:
        return shard_shape(bucket.leaf.unit_shape, self.specs[bucket], self.mesh)

    def entries(self, bucket: Bucket) -> int:
        """How many entries of one unit a device holds."""
        return math.prod(self.shard_shape(bucket))

    def load(self, owner: int) -> int:
        """How many entries one device sends this owner, or receives from it."""
        return sum(len(bucket.shares[owner]) * self.entries(bucket) for bucket in self.specs)

    @functools.cached_property
    def capacity(self) -> int:
        """The size of a buffer in entries: all have that of the fullest."""
        return max(self.load(owner) for owner in self.owners.flat)

    @functools.cached_property
    def owners(self) -> np.ndarray:
        """The owner at every coordinate along (copies, crossed)."""
        bucket = next(iter(self.specs))
        owners = owner_positions(bucket.owners, self.copies + self.crossed, self.mesh)
        return owners.reshape(-1, group_size(self.crossed, self.mesh))


def transfers_to_owners(
    buckets: Sequence[Bucket], mesh: MeshShape, wire_dtype: str | None
) -> list[Transfer]:
    """Plans the way from the shards of every unit to its owner."""
    moves = [(bucket, bucket.leaf.unit_held, ()) for bucket in buckets]
    return _merged(moves, mesh, wire_dtype)


def transfers_from_owners(
    buckets: Sequence[Bucket], mesh: MeshShape, wire_dtype: str | None
) -> list[Transfer]:
    """Plans the way from the owners to all who hold a shard of the result."""
    moves = [
        (bucket, bucket.leaf.unit_wanted, ordered(mesh_axes_in(bucket.leaf.batch_dropped), mesh))
        for bucket in buckets
    ]
    return _merged(moves, mesh, wire_dtype)


def _merged(
    moves: Sequence[tuple[Bucket, Spec, Axes]], mesh: MeshShape, wire_dtype: str | None
) -> list[Transfer]:
    """One transfer for all moves across the same axes among the same owners."""
    transfers: dict[tuple[Axes, Axes, Axes, str], dict[Bucket, Spec]] = {}
    for bucket, spec, dropped in moves:
        crossed = ordered(mesh_axes_in(spec), mesh)
        copies = tuple(axis for axis in bucket.owners if axis not in crossed)
        way = (crossed, copies, dropped, _narrower(bucket.leaf.dtype, wire_dtype))
        transfers.setdefault(way, {})[bucket] = spec
    return [Transfer(*way, specs, mesh) for way, specs in transfers.items()]


def _narrower(dtype: str, wire_dtype: str | None) -> str:
    if wire_dtype is None or np.dtype(wire_dtype).itemsize >= np.dtype(dtype).itemsize:
        return dtype
    return wire_dtype
