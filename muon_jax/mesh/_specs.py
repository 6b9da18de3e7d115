"""Reads the sharding of an array as far as JAX knows it, and checks the user's specs."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import refused

AnyMesh: TypeAlias = Mesh | AbstractMesh

Axes: TypeAlias = tuple[str, ...]
"""Names of mesh axes, major first."""

Spec: TypeAlias = tuple[Axes, ...]
"""For every axis of an array, the mesh axes that shard it."""

MeshShape: TypeAlias = Mapping[str, int]
"""The size of every mesh axis, in the order of the mesh."""


def spec_axes(spec: PartitionSpec, ndim: int) -> Spec:
    """Writes a PartitionSpec as the tuple of mesh axes on each of `ndim` axes."""
    entries = [*spec, *(None,) * (ndim - len(spec))]
    return tuple(
        () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for entry in entries
    )


def partition_spec(spec: Spec) -> PartitionSpec:
    """Writes a Spec as a PartitionSpec."""
    return PartitionSpec(*(axes or None for axes in spec))


def spec_of(leaf: Any) -> PartitionSpec:
    """Returns the spec of a leaf; without a `NamedSharding` it counts as replicated."""
    sharding = getattr(leaf, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()


def along(spec: Spec, axes: Collection[str]) -> Spec:
    """Returns a spec with only these mesh axes."""
    return tuple(tuple(axis for axis in entry if axis in axes) for entry in spec)


def axes_in(spec: Spec) -> set[str]:
    """Returns all mesh axes of a spec."""
    return {axis for entry in spec for axis in entry}


def group_size(axes: Collection[str], mesh: MeshShape) -> int:
    """Returns the number of devices along some mesh axes."""
    return math.prod(mesh[axis] for axis in axes)


def shard_shape(shape: Sequence[int], spec: Spec, mesh: MeshShape) -> tuple[int, ...]:
    """Returns the shape of one shard of an array."""
    return tuple(n // group_size(axes, mesh) for n, axes in zip(shape, spec, strict=True))


def replicated(array: Array) -> Array:
    """Replicates an array along Explicit mesh axes; XLA does so along Auto axes."""
    sharding = jax.typeof(array).sharding
    if not any(sharding.spec):
        return array
    return jax.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def known_sharding(array: Any) -> NamedSharding | None:
    """Returns the mesh and spec of an array, or None if they are unknown.

    A concrete array has a sharding; a traced one has it in its type if the mesh is Explicit. On
    Auto axes the type has only the mesh, see `mesh_of_type`.
    """
    if not isinstance(array, Tracer):
        sharding = getattr(array, "sharding", None)
        return sharding if isinstance(sharding, NamedSharding) else None
    sharding = jax.typeof(array).sharding
    return sharding if types_of(sharding.mesh) == {AxisType.Explicit} else None


def mesh_of_type(array: Any) -> AbstractMesh | None:
    """Returns the mesh of an array, which its type has on Auto axes as well, or None."""
    known = known_sharding(array)
    mesh = known.mesh.abstract_mesh if known else jax.typeof(array).sharding.mesh
    return None if mesh.empty else mesh


def types_of(mesh: AnyMesh) -> set[AxisType]:
    """Returns the types of the mesh axes that have more than one device."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {kind for axis, kind in pairs if mesh.shape[axis] > 1}


def axes_of_type(mesh: AnyMesh, wanted: AxisType) -> Axes:
    """Returns the mesh axes of one type."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(axis for axis, kind in pairs if kind == wanted)


def with_explicit_as_auto(
    function: Callable[..., list[Array]], like: Sequence[Array]
) -> Callable[..., list[Array]]:
    """Runs a function with Explicit axes as Auto ones; its results get the shardings of `like`."""
    types = [jax.typeof(array).sharding for array in like]
    mesh = next((t.mesh for t in types if axes_of_type(t.mesh, AxisType.Explicit)), None)
    if mesh is None:
        return function
    # An array on no mesh counts as replicated.
    types = [NamedSharding(mesh, PartitionSpec()) if t.mesh.empty else t for t in types]
    explicit = axes_of_type(mesh, AxisType.Explicit)
    as_auto: Any = jax.sharding.auto_axes(function, axes=explicit, out_sharding=types)
    return as_auto


def manual_axes() -> Axes:
    """Returns the mesh axes of the surrounding shard_map or pmap."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def varying_axes(array: Array) -> frozenset[str]:
    """Returns the manual mesh axes over which an array varies, if JAX tracks them."""
    kind: Any = jax.typeof(array)
    return kind.mat.varying


def tracks_varying(axes: Axes) -> bool:
    """Returns whether JAX tracks varying axes; not under `check_vma=False` or in a pmap."""
    return bool(varying_axes(lax.axis_index(axes)))


def check_spec(
    path: str,
    shape: Sequence[int],
    spec: PartitionSpec,
    mesh: MeshShape,
    divided: Collection[str] = (),
) -> None:
    """Raises ValueError for a spec that cannot shard a leaf over the mesh.

    Args:
      divided: mesh axes over which `shape` is already divided.
    """
    what = f"{spec} does not fit {path!r} of shape {tuple(shape)}"
    if len(spec) > len(shape):
        raise refused(f"{what}: it has only {len(shape)} axes", "Give one entry per axis")
    if PartitionSpec.UNCONSTRAINED in tuple(spec):
        raise refused(f"{what}: it has UNCONSTRAINED", "Name mesh axes or None for each axis")
    sharding = spec_axes(spec, len(shape))
    used = [axis for axes in sharding for axis in axes]
    unknown = [axis for axis in used if axis not in mesh]
    if unknown:
        raise refused(
            f"{what}: the mesh has no axis {unknown[0]!r}", f"Its axes are {', '.join(mesh)}"
        )
    twice = [axis for axis in used if used.count(axis) > 1]
    if twice:
        raise refused(f"{what}: it names {twice[0]!r} twice", "Name every mesh axis once")
    for place, (size, axes) in enumerate(zip(shape, sharding, strict=True)):
        if size % group_size(set(axes) - set(divided), mesh):
            over = " × ".join(f"{axis}={mesh[axis]}" for axis in axes)
            raise refused(
                f"{what}: axis {place} does not divide evenly over {over}",
                "Pad the leaf to a multiple, or leave that axis unsharded in its spec",
            )
