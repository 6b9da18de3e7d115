"""Puts optimizer state where the parameters are, or spreads it over devices that repeat them."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import invalid, path_name
from muon_jax.mesh._specs import (
    along,
    axes_of_type,
    check_spec,
    group_size,
    known_sharding,
    manual_axes,
    partition_spec,
    spec_axes,
)

Tree = TypeVar("Tree")


def zeros_beside(leaf: Array, dtype: Any = None) -> Array:
    """Makes zeros that lie as a leaf does.

    Zeros depend on nothing, so a traced `init` would leave all of them on one device: they become
    the other side of a choice that is never made, behind a barrier so that no compiler can know.
    Inside a shard_map they have the shape of a shard, and there is nothing to choose. Beside a leaf
    that a traced `init` closes over, they are put where it is known to lie.
    """
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    if manual_axes():
        return zeros
    if not isinstance(leaf, Tracer):
        known = known_sharding(leaf) if isinstance(zeros, Tracer) else None
        return zeros if known is None else _constrained(zeros, known)
    never = lax.optimization_barrier(jnp.zeros((), bool))
    return lax.select(never, leaf.astype(zeros.dtype), zeros)


def _constrained(array: Array, sharding: NamedSharding) -> Array:
    """Says how an array that is being traced is to lie."""
    mesh, spec = sharding.mesh, spec_axes(sharding.spec, array.ndim)
    explicit, auto = (axes_of_type(mesh, kind) for kind in (AxisType.Explicit, AxisType.Auto))
    if explicit:
        array = jax.reshard(array, NamedSharding(mesh, partition_spec(along(spec, explicit))))
    if auto:
        rest = NamedSharding(mesh, partition_spec(along(spec, auto)))
        array = lax.with_sharding_constraint(array, rest)
    return array


def on_mesh_of(params: Any, state: Tree) -> Tree:
    """Copies what a fresh state holds on one device, such as counters, to the mesh of the params.

    A step returns them on the whole mesh, and a second step with other shardings compiles again.
    While `init` is traced nothing tells counters from momenta but their rank.
    """
    found = [known_sharding(leaf) for leaf in jax.tree.leaves(params)]
    meshes = {each.mesh for each in found if each and isinstance(each.mesh, Mesh)}
    if len(meshes) != 1:
        return state
    everywhere = NamedSharding(meshes.pop(), PartitionSpec())

    def placed(leaf: Any) -> Any:
        may_be_momentum = isinstance(leaf, Tracer) and leaf.ndim
        if not isinstance(leaf, jax.Array) or known_sharding(leaf) or may_be_momentum:
            return leaf
        return jax.device_put(leaf, everywhere)

    return jax.tree.map(placed, state)


def zero1_shardings(params: Any, mesh: Mesh, axis: str | Sequence[str]) -> Any:
    """Spreads state over devices that hold the same parameters, as ZeRO stage 1 does.

    Every leaf is sharded along `axis` on top of the sharding that it has, on the first of its axes
    that divides evenly. Muon then sends each shard of the momentum to its owner once and the result
    to all devices, so the update has the sharding of the parameter again. A stack of layers that
    divides is best: owners hold their matrices already, and nothing travels to them.

    Args:
      params: parameters, or a momentum like them: arrays or their `jax.ShapeDtypeStruct`.
      mesh: the mesh.
      axis: the mesh axis, or axes, along which the parameters are repeated.

    Returns:
      A tree of `NamedSharding` for `jax.device_put` or `out_shardings`. A leaf that is sharded
      along `axis` already, or that it does not divide, keeps its sharding.

    Raises:
      ValueError: the mesh has no such axis, or not those by which a parameter is sharded.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> tuple(zero1_shardings({"kernel": jnp.ones((8, 4))}, mesh, "data")["kernel"].spec)
      ('data', None)
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    unknown = [name for name in axes if name not in mesh.shape]
    if unknown:
        names = ", ".join(map(repr, mesh.axis_names))
        raise invalid("zero1_shardings", "axis", axis, f"name axes of the mesh: {names}")

    def spread(path: Any, leaf: Any) -> NamedSharding:
        has = getattr(leaf, "sharding", None)
        spec = has.spec if isinstance(has, NamedSharding) else PartitionSpec()
        check_spec("zero1_shardings", path_name(path), leaf.shape, spec, mesh.shape)
        sharding = list(spec_axes(spec, leaf.ndim))
        if not any(name in entry for entry in sharding for name in axes):
            for place, size in enumerate(leaf.shape):
                if size % group_size((*sharding[place], *axes), mesh.shape) == 0:
                    sharding[place] += axes
                    break
        return NamedSharding(mesh, partition_spec(tuple(sharding)))

    return jax.tree_util.tree_map_with_path(spread, params)
