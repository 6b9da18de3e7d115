"""Says which devices would orthogonalise which leaf, from shapes and shardings alone."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from muon_jax.mesh._ownership import (
    Bucket,
    Cost,
    MeshShape,
    ShardedLeaf,
    owner_positions,
    plan_ownership,
)
from muon_jax.mesh._specs import known_sharding, spec_axes
from muon_jax.views._matrix_axes import MatrixAxes

Owners = tuple[int, ...]
"""Positions of devices, counted along the axes of the mesh with the last running fastest."""


def owners_of(
    leaves: Sequence[Any],
    views: Sequence[MatrixAxes | None],
    cost: Cost,
) -> list[Owners]:
    """Plans who owns the matrices of every leaf, as an update on its mesh would.

    Args:
      leaves: arrays or `jax.ShapeDtypeStruct`s; one without a sharding counts as whole.
      views: of every leaf; one without is nobody's.
      cost: the work of one matrix.

    Returns:
      The owners of each leaf; none where the leaves lie on no mesh, or on several.
    """
    owners: list[Owners] = [()] * len(leaves)
    shardings = [known_sharding(leaf) for leaf in leaves]
    meshes = {each.mesh.abstract_mesh for each in shardings if each}
    if len(meshes) != 1:
        return owners
    mesh = dict(meshes.pop().shape)
    places = [place for place, view in enumerate(views) if view is not None]
    sharded = [_sharded(leaves[place], views[place], shardings[place]) for place in places]
    for bucket in plan_ownership(sharded, mesh, tuple(mesh), cost):
        for index, member in enumerate(bucket.members):
            owners[places[member]] = _owners(bucket, index, mesh)
    return owners


def _sharded(leaf: Any, view: Any, sharding: NamedSharding | None) -> ShardedLeaf:
    spec = spec_axes(sharding.spec if sharding else PartitionSpec(), len(leaf.shape))
    return ShardedLeaf(tuple(leaf.shape), str(leaf.dtype), view, spec, spec)


def _owners(bucket: Bucket, index: int, mesh: MeshShape) -> Owners:
    """Finds the devices whose share of a bucket reaches into one of its members."""
    units = range(index * bucket.units, (index + 1) * bucket.units)
    takes = [max(share.start, units.start) < min(share.stop, units.stop) for share in bucket.shares]
    positions = owner_positions(bucket.owners, tuple(mesh), mesh).tolist()
    return tuple(device for device, owner in enumerate(positions) if takes[owner])
