"""Says which parcels travel together: the static plan of the collectives."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from muon_jax._ownership import (
    Axes,
    Lot,
    MeshShape,
    Spec,
    flat,
    group_size,
    ordered,
    owner_positions,
    shard_shape,
)


@dataclasses.dataclass(frozen=True)
class Convoy:
    """What crosses the same mesh axes in the same dtype, to the owners or back.

    Args:
        crossed: mesh axes that shard every unit of the cargo; its shards cross them.
        copies: the other axes that name an owner: devices along them hold equal shards.
        dropped: axes along which devices own different units of a batch that the result is to hold
            whole.
        wire: the name of the dtype that travels.
        cargo: the lots in the order of packing, each with the sharding of its units.
        mesh: the size of every mesh axis.
    """

    crossed: Axes
    copies: Axes
    dropped: Axes
    wire: str
    cargo: Mapping[Lot, Spec]
    mesh: MeshShape

    def shard_shape(self, lot: Lot) -> tuple[int, ...]:
        return shard_shape(lot.leaf.unit_shape, self.cargo[lot], self.mesh)

    def entries(self, lot: Lot) -> int:
        """How many entries of one unit a device holds."""
        return math.prod(self.shard_shape(lot))

    def load(self, owner: int) -> int:
        """How many entries one device sends this owner, or receives from it."""
        return sum(len(lot.shares[owner]) * self.entries(lot) for lot in self.cargo)

    @functools.cached_property
    def room(self) -> int:
        """The size of a parcel: all have that of the fullest."""
        return max(self.load(owner) for owner in self.owners.flat)

    @functools.cached_property
    def owners(self) -> np.ndarray:
        """The owner at every coordinate along (copies, crossed)."""
        lot = next(iter(self.cargo))
        owners = owner_positions(lot.owners, self.copies + self.crossed, self.mesh)
        return owners.reshape(-1, group_size(self.crossed, self.mesh))


def convoys_there(lots: Sequence[Lot], mesh: MeshShape, wire_dtype: str | None) -> list[Convoy]:
    """Plans the way from the shards of every unit to its owner."""
    legs = [(lot, lot.leaf.unit_held, ()) for lot in lots]
    return _merged(legs, mesh, wire_dtype)


def convoys_back(lots: Sequence[Lot], mesh: MeshShape, wire_dtype: str | None) -> list[Convoy]:
    """Plans the way from the owners to all who hold a shard of the result."""
    legs = [
        (lot, lot.leaf.unit_wanted, ordered(flat(lot.leaf.batch_dropped), mesh)) for lot in lots
    ]
    return _merged(legs, mesh, wire_dtype)


def _merged(
    legs: Sequence[tuple[Lot, Spec, Axes]], mesh: MeshShape, wire_dtype: str | None
) -> list[Convoy]:
    """One convoy for all legs that cross the same axes among the same owners."""
    convoys: dict[tuple[Axes, Axes, Axes, str], dict[Lot, Spec]] = {}
    for lot, spec, dropped in legs:
        crossed = ordered(flat(spec), mesh)
        copies = tuple(axis for axis in lot.owners if axis not in crossed)
        way = (crossed, copies, dropped, _narrower(lot.leaf.dtype, wire_dtype))
        convoys.setdefault(way, {})[lot] = spec
    return [Convoy(*way, cargo, mesh) for way, cargo in convoys.items()]


def _narrower(dtype: str, wire_dtype: str | None) -> str:
    if wire_dtype is None or np.dtype(wire_dtype).itemsize >= np.dtype(dtype).itemsize:
        return dtype
    return wire_dtype
