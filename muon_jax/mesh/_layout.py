"""Resolves the mesh and the shardings of the matrices of an update."""

import dataclasses
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import listed, path_name, refused
from muon_jax.mesh._distribution import Distribute, Distribution, is_spec
from muon_jax.mesh._specs import (
    AnyMesh,
    Axes,
    along,
    axes_in,
    check_spec,
    known_sharding,
    manual_axes,
    mesh_of_type,
    spec_axes,
    tracks_varying,
    types_of,
    varying_axes,
)
from muon_jax.trees._paths import kind_of_path
from muon_jax.views._matrix_axes import MatrixAxes, viewed


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh and shardings of the leaves of an update that are matrices.

    Attributes:
      mesh: the mesh.
      specs: the sharding of each leaf and of its result inside a shard_map; None elsewhere.
      kinds: equal for leaves that are sharded alike, as far as that is known, and otherwise for
        leaves whose paths differ only in numbers, such as layers of one kind.
      share: the mesh axes over which matrices are distributed.
      wire_dtype: the user's dtype for communication, if any.
    """

    mesh: AnyMesh
    specs: tuple[PartitionSpec, ...] | None
    kinds: tuple[Hashable, ...]
    share: Axes
    wire_dtype: str | None


@dataclasses.dataclass(frozen=True)
class _Leaves:
    """The leaves of an update that are matrices, in order."""

    paths: Sequence[str]
    arrays: Sequence[Array]
    like: Sequence[Array]


def resolve_layout(
    tree: Any, views: Sequence[MatrixAxes | None], distribute: Distribute, like: Any
) -> Layout | None:
    """Resolves the mesh and shardings of the leaves that have a view.

    The mesh is that of a surrounding shard_map, of the user's specs, of the leaves or their types,
    or of the context, in this order.

    Args:
      tree: the leaves to orthogonalise.
      views: the view of every leaf in order; leaves without a view are skipped.
      distribute: the user's argument.
      like: a tree of the same structure, usually the parameters, whose shardings the results get.

    Returns:
      The layout of the leaves that have a view, or None if there is one device or XLA places the
      work.
    """
    if distribute == "off" or not any(views):
        return None
    distribution = Distribution() if distribute == "auto" else distribute
    named = jax.tree_util.tree_leaves_with_path(tree)
    leaves = _Leaves(
        viewed([path_name(path) for path, _ in named], views),
        viewed([leaf for _, leaf in named], views),
        viewed(jax.tree.leaves(like), views),
    )
    given = None
    if distribution.specs is not None:
        given = viewed(_broadcast_specs(distribution.specs, tree), views)

    specs = None
    if manual_axes():
        mesh = jax.sharding.get_abstract_mesh()
        specs = _inside_shard_map(leaves, given, mesh)
    elif given is not None:
        mesh = _as_given(leaves, given, distribution.mesh)
    else:
        mesh = _as_found(leaves)
    if mesh is None or mesh.size == 1:
        return None
    share = _shared_axes(distribution.axes, mesh)
    kinds = [str(spec) for spec in given] if given else map(_kind, leaves.paths, leaves.arrays)
    return Layout(mesh, specs, tuple(kinds), share, distribution.wire_dtype)


def _kind(path: str, array: Array) -> str:
    known = known_sharding(array)
    return str(known.spec) if known else kind_of_path(path)


def _inside_shard_map(
    leaves: _Leaves, given: Sequence[PartitionSpec | NamedSharding] | None, mesh: AnyMesh
) -> tuple[PartitionSpec, ...]:
    """Uses the given specs, after checking them against the varying axes that JAX tracks.

    Inside a shard_map a shard cannot be told from a whole leaf, so wrong specs would silently give
    wrong results.
    """
    manual = manual_axes()
    tracked = tracks_varying(manual)
    if given is None:
        shards = [
            path
            for path, leaf in zip(leaves.paths, leaves.arrays, strict=True)
            if varying_axes(leaf) or not tracked or AxisType.Auto in types_of(mesh)
        ]
        if shards:
            raise refused(
                f"{listed(shards)} inside shard_map or pmap may be shards of a parameter, and JAX "
                "does not know their shardings",
                "Pass distribute=Distribution(specs=...) with the PartitionSpecs of the parameters,"
                " which is Distribution(specs=P()) for replicated ones, as those of pmap are; or "
                "distribute='off' to repeat the work on every device",
            )
        return tuple(jax.typeof(leaf).sharding.spec for leaf in leaves.arrays)

    specs = tuple(map(_spec, given))
    for path, leaf, spec in zip(leaves.paths, leaves.arrays, specs, strict=True):
        check_spec(path, leaf.shape, spec, mesh.shape, divided=manual)
        sharding = axes_in(spec_axes(spec, leaf.ndim)) & set(manual)
        if tracked and sharding != varying_axes(leaf):
            raise refused(
                f"{path!r} varies over {_names(varying_axes(leaf))} inside shard_map, and its spec "
                f"{spec} shards it over {_names(sharding)}",
                "Make both agree: average a gradient over the axes that do not shard the parameter",
            )
    return specs


def _as_given(
    leaves: _Leaves, given: Sequence[PartitionSpec | NamedSharding], given_mesh: AnyMesh | None
) -> AnyMesh:
    """Checks the given specs for the parameters, and returns their mesh."""
    mesh = _mesh_of_specs(given, given_mesh)
    divided = [axis for axis, size in mesh.shape.items() if size > 1]
    for path, leaf, like, spec in zip(
        leaves.paths, leaves.arrays, leaves.like, map(_spec, given), strict=True
    ):
        check_spec(path, leaf.shape, spec, mesh.shape)
        known = known_sharding(like)
        out = known.spec if known else spec
        if along(spec_axes(out, leaf.ndim), divided) != along(spec_axes(spec, leaf.ndim), divided):
            raise refused(
                f"{path!r} is sharded as {out}, and its given spec is {spec}",
                "Give its actual spec, or leave specs out",
            )
    return mesh


def _as_found(leaves: _Leaves) -> AnyMesh | None:
    """Returns the mesh of the leaves, which may lack some of them, or that of the context."""
    arrays = [*leaves.arrays, *leaves.like]
    meshes = {mesh for mesh in map(mesh_of_type, arrays) if mesh}
    if not meshes:
        # Concrete arrays without a mesh are on one device; in_shardings may place traced ones.
        around = jax.sharding.get_abstract_mesh()
        traced = any(isinstance(array, Tracer) for array in arrays)
        return around if traced and not around.empty else None
    if len(meshes) > 1:
        raise refused(
            f"{listed(leaves.paths)} are on {len(meshes)} different meshes",
            "Put all parameters on one mesh, or pass distribute='off'",
        )
    return meshes.pop()


def _shared_axes(axes: Axes | None, mesh: AnyMesh) -> Axes:
    """Returns the mesh axes over which matrices are distributed: the user's, or all."""
    unknown = [axis for axis in axes or () if axis not in mesh.shape]
    if unknown:
        raise refused(
            f"Distribution(axes={axes}) names {unknown[0]!r}, which the mesh does not have",
            f"Its axes are {_names(mesh.axis_names)}",
        )
    return tuple(mesh.axis_names) if axes is None else axes


def _broadcast_specs(specs: Any, tree: Any) -> list[PartitionSpec | NamedSharding]:
    try:
        return jax.tree.leaves(jax.tree.broadcast(specs, tree, is_leaf=is_spec), is_leaf=is_spec)
    except ValueError as error:
        raise refused(
            f"Distribution(specs=...) is no prefix of the parameters: {_mismatch(specs, tree)}",
            "Give one spec for all, or a tree with the structure of the parameters",
        ) from error


def _mismatch(specs: Any, tree: Any) -> str:
    """Lists the paths at which specs are no prefix of a tree."""
    given = [path for path, _ in jax.tree.leaves_with_path(specs, is_leaf=is_spec)]
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]

    def reaches(prefix: tuple[Any, ...], path: tuple[Any, ...]) -> bool:
        return path[: len(prefix)] == prefix

    unknown = [path for path in given if not any(reaches(path, each) for each in paths)]
    missing = [path for path in paths if not any(reaches(each, path) for each in given)]
    has = [f"{listed(map(path_name, unknown))}, which the parameters lack"] if unknown else []
    has += [f"nothing for {listed(map(path_name, missing))}"] if missing else []
    return f"it has {', and '.join(has)}" if has else "its nodes are of other types"


def _mesh_of_specs(given: Sequence[PartitionSpec | NamedSharding], mesh: AnyMesh | None) -> AnyMesh:
    around = jax.sharding.get_abstract_mesh()
    meshes = {each.mesh for each in given if isinstance(each, NamedSharding)}
    meshes |= {mesh} if mesh is not None else set()
    meshes = meshes or ({around} if not around.empty else set())
    if len(meshes) != 1:
        raise refused(
            f"Distribution(specs=...) names {len(meshes) or 'no'} meshes",
            "Give its mesh as Distribution(mesh, specs), or one by jax.set_mesh",
        )
    return meshes.pop()


def _spec(sharding: PartitionSpec | NamedSharding) -> PartitionSpec:
    return sharding.spec if isinstance(sharding, NamedSharding) else sharding


def _names(axes: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(axes))) or "no axis"
