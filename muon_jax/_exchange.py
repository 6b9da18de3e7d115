"""Carries shards to the owners of their matrices and the results back: the body of a shard_map.

One all_to_all moves the shards of all matrices that are sharded along the same mesh axes to their
owners, and one moves the results back. Devices along the other axes hold equal shards: on the way
there each sends only what the owners on its own coordinate need, which costs nothing, and on the
way back one all_gather tells all of them. In between every owner works on whole matrices and talks
to nobody.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from muon_jax._convoys import Convoy, convoys_back, convoys_there
from muon_jax._ownership import (
    Axes,
    Cost,
    Lot,
    MeshShape,
    ShardedLeaf,
    flat,
    group_size,
    ordered,
    owner_positions,
    plan_ownership,
    shard_shape,
)
from muon_jax._packing import (
    between,
    cut,
    from_units,
    from_wire,
    join,
    side_by_side,
    solve_units,
    to_units,
    to_wire,
)
from muon_jax._shardings import tracks_varying
from muon_jax._types import Matrices

Solve: TypeAlias = Callable[[list[Matrices]], list[Matrices]]
"""Orthogonalises batches of whole matrices of any shapes, each in its place."""

Units: TypeAlias = Shaped[Array, "units *unit"]
Parcels: TypeAlias = Shaped[Array, "devices room"]
"""What a device sends to each device along the crossed axes, or has received from each."""


def exchange_shards(
    shards: Sequence[Array],
    leaves: Sequence[ShardedLeaf],
    mesh: MeshShape,
    *,
    share: Collection[str],
    solve: Solve,
    cost: Cost,
    wire_dtype: str | None = None,
) -> list[Array]:
    """Orthogonalises sharded leaves; runs on every device of the mesh at once.

    Args:
        shards: what this device holds of every leaf, as the leaf's `held` says.
        leaves: what the shards are shards of, settled.
        mesh: the size of every mesh axis.
        share: the mesh axes along which devices take work over from each other.
        solve: the work of an owner.
        cost: the work of one matrix, by which it is shared evenly.
        wire_dtype: a narrower dtype for what travels.

    Returns:
        What this device must hold of every result, as the leaf's `wanted` says.
    """
    lots = plan_ownership(leaves, mesh, share, cost)
    units = {
        lot: [to_units(shards[member], lot.leaf.batch_axes) for member in lot.members]
        for lot in lots
    }
    staying = [lot for lot in lots if lot.stays]
    leaving = [lot for lot in lots if not lot.stays]

    solved = _solved({lot: jnp.concatenate(units[lot]) for lot in staying}, solve)
    told = {lot: solved[lot][None] for lot in staying if not flat(lot.leaf.batch_dropped)}
    back = convoys_back([lot for lot in staying if lot not in told], mesh, wire_dtype)
    parcels = [_pack_results(convoy, solved) for convoy in back]
    if leaving:
        there = convoys_there(leaving, mesh, wire_dtype)
        from_owners = convoys_back(leaving, mesh, wire_dtype)
        arrived = [_pack_shards(convoy, units) for convoy in there]
        arrived = _at_once(_swap, [convoy.crossed for convoy in there], arrived)
        parcels += _work_as_owner(there, arrived, from_owners, solve)
        back += from_owners

    parcels = _at_once(_swap, [convoy.crossed for convoy in back], parcels)
    parcels = [parcel.reshape(-1) for parcel in parcels]
    parcels = _at_once(_gather, [convoy.dropped + convoy.copies for convoy in back], parcels)
    for convoy, parcel in zip(back, parcels, strict=True):
        told |= _unpack_results(convoy, parcel)

    done: dict[int, Array] = {}
    for lot in lots:
        for place, member in enumerate(lot.members):
            mine = told[lot][:, place * lot.units : (place + 1) * lot.units]
            done[member] = _settle(lot, mine, mesh)
    return [done[member] for member in range(len(shards))]


def _pack_shards(convoy: Convoy, units: Mapping[Lot, Sequence[Units]]) -> Parcels:
    """Packs what is here of their units for all owners at this device's place among the copies.

    Packing for all owners and dropping the rest afterwards would copy every leaf.
    """

    def pack(owners: np.ndarray) -> Parcels:
        rows = [
            side_by_side(
                [between(units[lot], lot.shares[owner]).reshape(1, -1) for lot in convoy.cargo],
                convoy.room,
            )
            for owner in owners
        ]
        return to_wire(jnp.concatenate(rows), convoy.wire)

    return _on_this_device(
        convoy.copies, [functools.partial(pack, owners) for owners in convoy.owners]
    )


def _work_as_owner(
    there: Sequence[Convoy], arrived: Sequence[Parcels], back: Sequence[Convoy], solve: Solve
) -> list[Parcels]:
    """Orthogonalises what this device owns; devices that own alike run the same code."""
    mesh = there[0].mesh
    lots = [lot for convoy in there for lot in convoy.cargo]
    everyone = ordered({axis for lot in lots for axis in lot.owners}, mesh)
    owned = [
        np.array([len(share) for share in lot.shares])[owner_positions(lot.owners, everyone, mesh)]
        for lot in lots
    ]
    bundles, kinds = np.unique(np.stack(owned, axis=1), axis=0, return_inverse=True)

    def work(bundle: np.ndarray) -> list[Parcels]:
        counts = dict(zip(lots, bundle.tolist(), strict=True))
        whole: dict[Lot, Units] = {}
        for convoy, parcels in zip(there, arrived, strict=True):
            whole |= _unpack_shards(convoy, parcels, counts)
        solved = _solved(whole, solve)
        return [_pack_results(convoy, solved) for convoy in back]

    return _on_this_device(everyone, [functools.partial(work, each) for each in bundles], kinds)


def _unpack_shards(convoy: Convoy, parcels: Parcels, counts: Mapping[Lot, int]) -> dict[Lot, Units]:
    """Joins the shards of this owner's units."""
    whole = {}
    start = 0
    for lot, spec in convoy.cargo.items():
        stop = start + counts[lot] * convoy.entries(lot)
        shards = from_wire(parcels[:, start:stop], convoy.wire, lot.leaf.dtype)
        shards = shards.reshape(len(parcels), counts[lot], *convoy.shard_shape(lot))
        whole[lot] = join(shards, ((), *spec), convoy.crossed, convoy.mesh)
        start = stop
    return whole


def _pack_results(convoy: Convoy, solved: Mapping[Lot, Units]) -> Parcels:
    """Cuts the results of this owner into the shards that the devices are to hold."""
    devices = group_size(convoy.crossed, convoy.mesh)
    shards = [
        cut(solved[lot], ((), *spec), convoy.crossed, convoy.mesh).reshape(devices, -1)
        for lot, spec in convoy.cargo.items()
    ]
    return to_wire(side_by_side(shards, convoy.room), convoy.wire)


def _unpack_results(convoy: Convoy, parcels: Shaped[Array, "..."]) -> dict[Lot, Array]:
    """Sorts the shards that all owners have sent.

    Returns:
        For each lot an array (devices along the dropped axes, units, *shard of a unit).
    """
    parts, owners = group_size(convoy.dropped, convoy.mesh), convoy.owners.size
    parcels = parcels.reshape(parts, owners, convoy.room)
    sources = np.argsort(convoy.owners, axis=None)
    in_order = bool((sources == np.arange(owners)).all())

    told = {}
    starts = np.zeros(owners, int)
    for lot in convoy.cargo:
        stops = starts + convoy.entries(lot) * np.array([len(share) for share in lot.shares])
        if in_order and len(set(zip(starts.tolist(), stops.tolist(), strict=True))) == 1:
            shards = parcels[:, :, starts[0] : stops[0]]  # one slice, which needs no copy
        else:
            pieces = zip(sources.tolist(), starts.tolist(), stops.tolist(), strict=True)
            shards = jnp.concatenate([parcels[:, i, start:stop] for i, start, stop in pieces], 1)
        shape = (parts, lot.shares[-1].stop, *convoy.shard_shape(lot))
        told[lot] = from_wire(shards, convoy.wire, lot.leaf.dtype).reshape(shape)
        starts = stops
    return told


def _settle(lot: Lot, units: Array, mesh: MeshShape) -> Array:
    """Makes a leaf of its units, along whose first axis lie parts of a batch held in parts."""
    leaf = lot.leaf
    spec = tuple(
        held + wanted for held, wanted in zip(leaf.batch_held, leaf.unit_wanted, strict=True)
    )
    shape = shard_shape(leaf.shape, spec, mesh)
    parts = jax.vmap(lambda part: from_units(part, shape, leaf.batch_axes))(units)
    return join(parts, leaf.batch_dropped, ordered(flat(leaf.batch_dropped), mesh), mesh)


def _solved(whole: Mapping[Lot, Units], solve: Solve) -> dict[Lot, Units]:
    some = [lot for lot, units in whole.items() if len(units)]
    done = solve_units([whole[lot] for lot in some], [lot.leaf.view for lot in some], solve)
    return {**whole, **dict(zip(some, done, strict=True))}


def _at_once(
    collective: Callable[[Array, Axes], Array], axes: Sequence[Axes], parcels: Sequence[Array]
) -> list[Array]:
    """Runs one collective for all parcels that cross the same mesh axes, side by side."""
    together: dict[tuple[Axes, str], list[int]] = {}
    for place, parcel in enumerate(parcels):
        if axes[place]:
            together.setdefault((axes[place], parcel.dtype.name), []).append(place)
    moved = list(parcels)
    for (crossed, _), places in together.items():
        stops = np.cumsum([parcels[place].shape[-1] for place in places])
        joined = jnp.concatenate([parcels[place] for place in places], axis=-1)
        parts = jnp.split(collective(joined, crossed), stops[:-1], axis=-1)
        for place, part in zip(places, parts, strict=True):
            moved[place] = part
    return moved


def _swap(parcels: Parcels, axes: Axes) -> Parcels:
    return lax.all_to_all(parcels, axes, 0, 0)


def _gather(parcels: Shaped[Array, "room"], axes: Axes) -> Shaped[Array, "devices room"]:
    return lax.all_gather(parcels, axes, to="invarying" if tracks_varying(axes) else "varying")


def _on_this_device(
    axes: Axes, branches: Sequence[Callable[[], Any]], kinds: np.ndarray | None = None
) -> Any:
    """Runs the branch of this device's coordinates along `axes`."""
    if len(branches) == 1:
        return branches[0]()
    which = lax.axis_index(axes)
    return lax.switch(which if kinds is None else jnp.asarray(kinds.ravel())[which], branches)
