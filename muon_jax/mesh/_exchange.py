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

from muon_jax._types import Solve
from muon_jax.mesh._ownership import (
    Axes,
    Bucket,
    Cost,
    MeshShape,
    ShardedLeaf,
    group_size,
    mesh_axes_in,
    ordered,
    owner_positions,
    plan_ownership,
    shard_shape,
)
from muon_jax.mesh._packing import (
    between,
    cut,
    from_units,
    join,
    over_the_wire,
    side_by_side,
    solve_units,
    to_units,
)
from muon_jax.mesh._specs import tracks_varying
from muon_jax.mesh._transfers import Transfer, transfers_from_owners, transfers_to_owners

Units: TypeAlias = Shaped[Array, "units *unit"]
Buffers: TypeAlias = Shaped[Array, "devices capacity"]
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
    buckets = plan_ownership(leaves, mesh, share, cost)
    units = {
        bucket: [to_units(shards[member], bucket.leaf.batch_axes) for member in bucket.members]
        for bucket in buckets
    }
    staying = [bucket for bucket in buckets if bucket.stays]
    leaving = [bucket for bucket in buckets if not bucket.stays]

    solved = _solved({bucket: jnp.concatenate(units[bucket]) for bucket in staying}, solve)
    received = {
        bucket: solved[bucket][None]
        for bucket in staying
        if not mesh_axes_in(bucket.leaf.batch_dropped)
    }
    back = transfers_from_owners(
        [bucket for bucket in staying if bucket not in received], mesh, wire_dtype
    )
    buffers = [_pack_results(transfer, solved) for transfer in back]
    if leaving:
        there = transfers_to_owners(leaving, mesh, wire_dtype)
        from_owners = transfers_from_owners(leaving, mesh, wire_dtype)
        arrived = [_pack_shards(transfer, units) for transfer in there]
        arrived = _at_once(_swap, [transfer.crossed for transfer in there], arrived)
        buffers += _work_as_owner(there, arrived, from_owners, solve)
        back += from_owners

    buffers = _at_once(_swap, [transfer.crossed for transfer in back], buffers)
    buffers = [buffer.reshape(-1) for buffer in buffers]
    buffers = _at_once(_gather, [transfer.dropped + transfer.copies for transfer in back], buffers)
    for transfer, buffer in zip(back, buffers, strict=True):
        received |= _unpack_results(transfer, buffer)

    done: dict[int, Array] = {}
    for bucket in buckets:
        for place, member in enumerate(bucket.members):
            mine = received[bucket][:, place * bucket.units : (place + 1) * bucket.units]
            done[member] = _settle(bucket, mine, mesh)
    return [done[member] for member in range(len(shards))]


def _pack_shards(transfer: Transfer, units: Mapping[Bucket, Sequence[Units]]) -> Buffers:
    """Packs what is here of their units for all owners at this device's place among the copies.

    Packing for all owners and dropping the rest afterwards would copy every leaf.
    """

    def row(owner: int) -> Buffers:
        shards = [
            between(units[bucket], bucket.shares[owner]).reshape(1, -1) for bucket in transfer.specs
        ]
        return side_by_side(shards, transfer.capacity)

    def pack(owners: np.ndarray) -> Buffers:
        return jnp.concatenate([row(owner) for owner in owners]).astype(transfer.wire)

    return _on_this_device(
        transfer.copies, [functools.partial(pack, owners) for owners in transfer.owners]
    )


def _work_as_owner(
    there: Sequence[Transfer], arrived: Sequence[Buffers], back: Sequence[Transfer], solve: Solve
) -> list[Buffers]:
    """Orthogonalises what this device owns; devices that own alike run the same code."""
    mesh = there[0].mesh
    buckets = [bucket for transfer in there for bucket in transfer.specs]
    everyone = ordered({axis for bucket in buckets for axis in bucket.owners}, mesh)
    owned = [bucket.counts[owner_positions(bucket.owners, everyone, mesh)] for bucket in buckets]
    kinds, kind = np.unique(np.stack(owned, axis=1), axis=0, return_inverse=True)

    def work(units: np.ndarray) -> list[Buffers]:
        counts = dict(zip(buckets, units.tolist(), strict=True))
        whole: dict[Bucket, Units] = {}
        for transfer, buffers in zip(there, arrived, strict=True):
            whole |= _unpack_shards(transfer, buffers, counts)
        solved = _solved(whole, solve)
        return [_pack_results(transfer, solved) for transfer in back]

    return _on_this_device(everyone, [functools.partial(work, each) for each in kinds], kind)


def _unpack_shards(
    transfer: Transfer, buffers: Buffers, counts: Mapping[Bucket, int]
) -> dict[Bucket, Units]:
    """Joins the shards of this owner's units."""
    whole = {}
    start = 0
    for bucket, spec in transfer.specs.items():
        stop = start + counts[bucket] * transfer.entries(bucket)
        shards = buffers[:, start:stop].astype(bucket.leaf.dtype)
        shards = shards.reshape(len(buffers), counts[bucket], *transfer.shard_shape(bucket))
        whole[bucket] = join(shards, ((), *spec), transfer.crossed, transfer.mesh)
        start = stop
    return whole


def _pack_results(transfer: Transfer, solved: Mapping[Bucket, Units]) -> Buffers:
    """Cuts the results of this owner into the shards that the devices are to hold."""
    devices = group_size(transfer.crossed, transfer.mesh)
    shards = [
        cut(solved[bucket], ((), *spec), transfer.crossed, transfer.mesh).reshape(devices, -1)
        for bucket, spec in transfer.specs.items()
    ]
    return side_by_side(shards, transfer.capacity).astype(transfer.wire)


def _unpack_results(transfer: Transfer, buffers: Shaped[Array, "..."]) -> dict[Bucket, Array]:
    """Sorts the shards that all owners have sent.

    Returns:
      For each bucket an array (devices along the dropped axes, units, *shard of a unit).
    """
    parts, owners = group_size(transfer.dropped, transfer.mesh), transfer.owners.size
    buffers = buffers.reshape(parts, owners, transfer.capacity)
    sources = np.argsort(transfer.owners, axis=None)
    in_order = bool((sources == np.arange(owners)).all())

    received = {}
    starts = np.zeros(owners, int)
    for bucket in transfer.specs:
        stops = starts + transfer.entries(bucket) * bucket.counts
        if in_order and len(set(zip(starts.tolist(), stops.tolist(), strict=True))) == 1:
            shards = buffers[:, :, starts[0] : stops[0]]  # one slice, which needs no copy
        else:
            pieces = zip(sources.tolist(), starts.tolist(), stops.tolist(), strict=True)
            shards = jnp.concatenate([buffers[:, i, start:stop] for i, start, stop in pieces], 1)
        shape = (parts, bucket.shares[-1].stop, *transfer.shard_shape(bucket))
        received[bucket] = shards.astype(bucket.leaf.dtype).reshape(shape)
        starts = stops
    return received


def _settle(bucket: Bucket, units: Array, mesh: MeshShape) -> Array:
    """Makes a leaf of its units, along whose first axis lie parts of a batch held in parts."""
    leaf = bucket.leaf
    spec = tuple(
        held + wanted for held, wanted in zip(leaf.batch_held, leaf.unit_wanted, strict=True)
    )
    shape = shard_shape(leaf.shape, spec, mesh)
    parts = jax.vmap(lambda part: from_units(part, shape, leaf.batch_axes))(units)
    return join(parts, leaf.batch_dropped, ordered(mesh_axes_in(leaf.batch_dropped), mesh), mesh)


def _solved(whole: Mapping[Bucket, Units], solve: Solve) -> dict[Bucket, Units]:
    some = [bucket for bucket, units in whole.items() if len(units)]
    done = solve_units(
        [whole[bucket] for bucket in some], [bucket.leaf.view for bucket in some], solve
    )
    return {**whole, **dict(zip(some, done, strict=True))}


def _at_once(
    collective: Callable[..., Array], axes: Sequence[Axes], buffers: Sequence[Array]
) -> list[Array]:
    """Runs one collective for all buffers that cross the same mesh axes, side by side."""
    together: dict[tuple[Axes, str], list[int]] = {}
    for place, buffer in enumerate(buffers):
        if axes[place]:
            together.setdefault((axes[place], buffer.dtype.name), []).append(place)
    moved = list(buffers)
    for (crossed, _), places in together.items():
        stops = np.cumsum([buffers[place].shape[-1] for place in places])
        joined = jnp.concatenate([buffers[place] for place in places], axis=-1)
        move = over_the_wire(functools.partial(collective, axes=crossed))
        parts = jnp.split(move(joined), stops[:-1], axis=-1)
        for place, part in zip(places, parts, strict=True):
            moved[place] = part
    return moved


def _swap(buffers: Buffers, axes: Axes) -> Buffers:
    return lax.all_to_all(buffers, axes, 0, 0)


def _gather(buffers: Shaped[Array, "capacity"], axes: Axes) -> Shaped[Array, "devices capacity"]:
    return lax.all_gather(buffers, axes, to="invarying" if tracks_varying(axes) else "varying")


def _on_this_device(
    axes: Axes, branches: Sequence[Callable[[], Any]], kinds: np.ndarray | None = None
) -> Any:
    """Runs the branch of this device's coordinates along `axes`."""
    if len(branches) == 1:
        return branches[0]()
    which = lax.axis_index(axes)
    return lax.switch(which if kinds is None else jnp.asarray(kinds.ravel())[which], branches)
