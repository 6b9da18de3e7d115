"""Finds out where the matrices of an update lie."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import listed, path_name, refused
from muon_jax.mesh._distribution import Distribute, Distribution, is_spec
from muon_jax.mesh._ownership import Axes, mesh_axes_in
from muon_jax.mesh._specs import (
    AnyMesh,
    along,
    check_spec,
    known_sharding,
    manual_axes,
    spec_axes,
    tracks_varying,
    types_of,
    varying_axes,
)
from muon_jax.views._matrix_axes import MatrixAxes

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where matrices lie on a mesh, and who may help with them.

    Args:
      call: the public call, for messages.
      mesh: the mesh.
      held: the spec in which each leaf comes.
      wanted: the spec in which each result must go.
      share: the mesh axes along which devices may take work over from each other.
      wire_dtype: a narrower dtype for what travels.
    """

    call: str
    mesh: AnyMesh
    held: tuple[PartitionSpec, ...]
    wanted: tuple[PartitionSpec, ...]
    share: Axes
    wire_dtype: str | None


@dataclasses.dataclass(frozen=True)
class CompilerLayout:
    """The layout of leaves whose shardings only the compiler will know.

    Args:
      call: as in `Layout`.
      like: arrays whose shardings the results are to have; None is the leaves themselves.
      share: as in `Layout`; None is every mesh axis.
      wire_dtype: as in `Layout`.
    """

    call: str
    like: tuple[Array, ...] | None
    share: Axes | None
    wire_dtype: str | None


def resolve_layout(
    call: str,
    tree: Any,
    views: Sequence[MatrixAxes | None],
    distribute: Distribute,
    like: Any,
) -> Layout | CompilerLayout | None:
    """Finds out where the leaves lie that have a view.

    The first that knows decides: the user's word inside a shard_map, the type of a leaf on an
    Explicit mesh, the user's word, a leaf itself where it is not traced, and last the compiler.

    Args:
      call: the public call, for messages.
      tree: the leaves that are to be orthogonalised.
      views: of every leaf in order; a leaf without one is passed by.
      distribute: what the user said.
      like: a tree of the same structure, usually the parameters, whose shardings the results are
        to have.

    Returns:
      The layout of the leaves that have a view, or None where one device does all the work.
    """
    if distribute == "off" or not any(views):
        return None
    wish = Distribution() if distribute == "auto" else distribute
    named = jax.tree_util.tree_leaves_with_path(tree)
    paths = _viewed([path_name(path) for path, _ in named], views)
    leaves = _viewed([leaf for _, leaf in named], views)
    targets = _viewed(jax.tree.leaves(like), views)
    said = None
    if wish.specs is not None:
        said = _viewed(_broadcast_specs(call, wish.specs, tree), views)

    if manual_axes():
        layout = _inside_shard_map(call, paths, leaves, said, wish)
    elif said is not None:
        layout = _as_said(call, paths, leaves, targets, said, wish)
    elif any(map(_left_to_compiler, [*leaves, *targets])):
        if jax.device_count() == 1:
            return None
        return CompilerLayout(call, tuple(targets), wish.axes, wish.wire_dtype)
    else:
        layout = _as_found(call, paths, leaves, targets, wish)
    return None if layout is None or layout.mesh.size == 1 else layout


def _inside_shard_map(
    call: str,
    paths: Sequence[str],
    leaves: Sequence[Array],
    said: Sequence[PartitionSpec | NamedSharding] | None,
    wish: Distribution,
) -> Layout | None:
    """Takes the user's word and holds it against the little that JAX knows of each leaf.

    A shard looks like a whole leaf here, so that a wrong layout would give wrong results silently.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1:
        return None
    manual = manual_axes()
    tracked = tracks_varying(manual)
    if said is None:
        shards = [
            path
            for path, leaf in zip(paths, leaves, strict=True)
            if varying_axes(leaf) or not tracked or AxisType.Auto in types_of(mesh)
        ]
        if shards:
            raise refused(
                call,
                f"{listed(shards)} inside shard_map may be shards, which nothing tells",
                "Pass distribute=Distribution(specs=...) with the PartitionSpecs of the parameters",
            )
        specs = tuple(jax.typeof(leaf).sharding.spec for leaf in leaves)
        return _layout(call, mesh, specs, specs, wish)

    specs = tuple(_spec(each) for each in said)
    for path, leaf, spec in zip(paths, leaves, specs, strict=True):
        check_spec(call, path, leaf.shape, spec, mesh.shape, divided=manual)
        sharding = mesh_axes_in(spec_axes(spec, leaf.ndim)) & set(manual)
        if tracked and sharding != varying_axes(leaf):
            raise refused(
                call,
                f"{path!r} varies over {_names(varying_axes(leaf))} inside shard_map, and its spec "
                f"{spec} shards it over {_names(sharding)}",
                "Make both agree: average a gradient over the axes that do not shard the parameter",
            )
    return _layout(call, mesh, specs, specs, wish)


def _as_said(
    call: str,
    paths: Sequence[str],
    leaves: Sequence[Array],
    targets: Sequence[Array],
    said: Sequence[PartitionSpec | NamedSharding],
    wish: Distribution,
) -> Layout:
    """Takes the user's word for what the parameters' shardings are, unless JAX knows better."""
    mesh = _mesh_of_specs(call, said, wish)
    divided = [axis for axis, size in mesh.shape.items() if size > 1]
    held, wanted = [], []
    for path, leaf, target, spec in zip(paths, leaves, targets, map(_spec, said), strict=True):
        check_spec(call, path, leaf.shape, spec, mesh.shape)
        known, found = known_sharding(leaf), known_sharding(target)
        lies = found.spec if found else spec
        if along(spec_axes(lies, leaf.ndim), divided) != along(spec_axes(spec, leaf.ndim), divided):
            raise refused(
                call,
                f"{path!r} lies as {lies}, and its spec says {spec}",
                "Give the spec that it has, or leave specs out to have it found",
            )
        held.append(known.spec if known else spec)
        wanted.append(lies)
    return _layout(call, mesh, tuple(held), tuple(wanted), wish)


def _as_found(
    call: str,
    paths: Sequence[str],
    leaves: Sequence[Array],
    targets: Sequence[Array],
    wish: Distribution,
) -> Layout | None:
    """Reads the shardings off the leaves; one that lies on no mesh counts as whole everywhere."""
    found = [known_sharding(array) for array in [*leaves, *targets]]
    meshes = {each.mesh.abstract_mesh: each.mesh for each in found if each}
    if not meshes:
        return None
    if len(meshes) > 1:
        raise refused(
            call,
            f"{listed(paths)} lie on {len(meshes)} different meshes",
            "Put all parameters on one mesh, or pass distribute='off'",
        )
    specs = tuple(each.spec if each else PartitionSpec() for each in found)
    (mesh,) = meshes.values()
    return _layout(call, mesh, specs[: len(leaves)], specs[len(leaves) :], wish)


def _left_to_compiler(array: Any) -> bool:
    return isinstance(array, Tracer) and known_sharding(array) is None


def _layout(
    call: str,
    mesh: AnyMesh,
    held: tuple[PartitionSpec, ...],
    wanted: tuple[PartitionSpec, ...],
    wish: Distribution,
) -> Layout:
    return Layout(call, mesh, held, wanted, shared_axes(call, wish.axes, mesh), wish.wire_dtype)


def shared_axes(call: str, axes: Axes | None, mesh: AnyMesh) -> Axes:
    """The mesh axes along which work is shared: those that the user named, or all."""
    unknown = [axis for axis in axes or () if axis not in mesh.shape]
    if unknown:
        raise refused(
            call,
            f"Distribution(axes={axes}) names {unknown[0]!r}, which the mesh does not have",
            f"Its axes are {_names(mesh.axis_names)}",
        )
    return tuple(mesh.axis_names) if axes is None else axes


def _broadcast_specs(call: str, specs: Any, tree: Any) -> list[PartitionSpec | NamedSharding]:
    try:
        return jax.tree.leaves(jax.tree.broadcast(specs, tree, is_leaf=is_spec), is_leaf=is_spec)
    except ValueError as error:
        raise refused(
            call,
            f"Distribution(specs=...) is no prefix of the parameters: {_mismatch(specs, tree)}",
            "Give one spec for all, or a tree with the structure of the parameters",
        ) from error


def _mismatch(specs: Any, tree: Any) -> str:
    """Says by paths why specs are no prefix of a tree."""
    given = [path for path, _ in jax.tree.leaves_with_path(specs, is_leaf=is_spec)]
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]

    def reaches(prefix: tuple[Any, ...], path: tuple[Any, ...]) -> bool:
        return path[: len(prefix)] == prefix

    strange = [path for path in given if not any(reaches(path, each) for each in paths)]
    lacking = [path for path in paths if not any(reaches(each, path) for each in given)]
    has = [f"{listed(map(path_name, strange))}, which they have not"] if strange else []
    has += [f"nothing for {listed(map(path_name, lacking))}"] if lacking else []
    return f"it has {', and '.join(has)}" if has else "its nodes are of other types"


def _mesh_of_specs(
    call: str, said: Sequence[PartitionSpec | NamedSharding], wish: Distribution
) -> AnyMesh:
    around = jax.sharding.get_abstract_mesh()
    meshes = {each.mesh for each in said if isinstance(each, NamedSharding)}
    meshes |= {wish.mesh} if wish.mesh is not None else set()
    meshes = meshes or ({around} if not around.empty else set())
    if len(meshes) != 1:
        raise refused(
            call,
            f"Distribution(specs=...) speaks of {len(meshes) or 'no'} meshes",
            "Give its mesh as Distribution(mesh, specs), or one by jax.set_mesh",
        )
    return meshes.pop()


def _spec(sharding: PartitionSpec | NamedSharding) -> PartitionSpec:
    return sharding.spec if isinstance(sharding, NamedSharding) else sharding


def _viewed(items: Sequence[Item], views: Sequence[MatrixAxes | None]) -> list[Item]:
    return [item for item, view in zip(items, views, strict=True) if view is not None]


def _names(axes: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(axes))) or "no axis"
