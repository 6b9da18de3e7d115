"""Shards optimizer state like the parameters, or over the devices that replicate them (ZeRO-1)."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import invalid, named, path_name
from muon_jax.mesh._specs import (
    along,
    axes_of_type,
    check_spec,
    group_size,
    known_sharding,
    manual_axes,
    partition_spec,
    spec_axes,
    spec_of,
)

Tree = TypeVar("Tree")


def zeros_sharded_as(leaf: Array, dtype: Any = None) -> Array:
    """Returns zeros with the shape and sharding of a leaf.

    Zeros depend on no input, so XLA would leave those of a traced `init` on one device. A `select`
    with the leaf gives them its sharding; the barrier hides from XLA that the predicate is always
    False. Inside a shard_map they have the shape of a shard. If a traced `init` closes over the
    leaf, its sharding is known, and a constraint sets it.
    """
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    if manual_axes():
        return zeros
    if not isinstance(leaf, Tracer):
        known = known_sharding(leaf) if isinstance(zeros, Tracer) else None
        return zeros if known is None else constrained(zeros, known)
    never = lax.optimization_barrier(jnp.zeros((), bool))
    return lax.select(never, leaf.astype(zeros.dtype), zeros)


def constrained(array: Array, sharding: NamedSharding) -> Array:
    """Constrains the sharding of a traced array."""
    mesh, spec = sharding.mesh, spec_axes(sharding.spec, array.ndim)
    explicit, auto = (axes_of_type(mesh, kind) for kind in (AxisType.Explicit, AxisType.Auto))
    if explicit:
        array = jax.reshard(array, NamedSharding(mesh, partition_spec(along(spec, explicit))))
    if auto:
        rest = NamedSharding(mesh, partition_spec(along(spec, auto)))
        array = lax.with_sharding_constraint(array, rest)
    return array


def on_mesh_of(params: Any, state: Tree) -> Tree:
    """Replicates the arrays of a fresh state that are on one device, such as counters.

    A step returns them on the mesh of the params, so without this the second step would compile
    again. In a traced `init`, arrays of rank 0 count as counters and the others as momenta.
    """
    found = [known_sharding(leaf) for leaf in jax.tree.leaves(params)]
    meshes = {each.mesh for each in found if each and isinstance(each.mesh, Mesh)}
    if len(meshes) != 1:
        return state
    replicated = NamedSharding(meshes.pop(), PartitionSpec())

    def placed(leaf: Any) -> Any:
        may_be_momentum = isinstance(leaf, Tracer) and leaf.ndim
        if not isinstance(leaf, jax.Array) or known_sharding(leaf) or may_be_momentum:
            return leaf
        return jax.device_put(leaf, replicated)

    return jax.tree.map(placed, state)


@named("zero1_shardings")
def zero1_shardings(params: Any, mesh: Mesh, axis: str | Sequence[str]) -> Any:
    """Shards state over devices that hold the same parameters, as ZeRO stage 1 does.

    Every leaf is additionally sharded over `axis`, on the first of its axes that divides evenly.
    Muon then transfers each shard of the momentum to its owner and the result to all devices, so
    the update has the sharding of the parameter. A stack of layers that divides evenly is best,
    because owners hold their matrices already.

    Args:
      params: parameters, or a momentum like them: arrays or their `jax.ShapeDtypeStruct`.
      mesh: the mesh.
      axis: the mesh axis, or axes, along which the parameters are replicated.

    Returns:
      A tree of `NamedSharding` for `jax.device_put` or `out_shardings`. A leaf that is already
      sharded over `axis`, or has no axis that it divides, keeps its sharding.

    Raises:
      ValueError: the mesh lacks `axis`, or an axis that shards a parameter.

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
        raise invalid("axis", axis, f"name axes of the mesh: {names}")

    def sharded(path: Any, leaf: Any) -> NamedSharding:
        spec = spec_of(leaf)
        check_spec(path_name(path), leaf.shape, spec, mesh.shape)
        sharding = list(spec_axes(spec, leaf.ndim))
        if not any(name in entry for entry in sharding for name in axes):
            for place, size in enumerate(leaf.shape):
                if size % group_size((*sharding[place], *axes), mesh.shape) == 0:
                    sharding[place] += axes
                    break
        return NamedSharding(mesh, partition_spec(tuple(sharding)))

    return jax.tree_util.tree_map_with_path(sharded, params)
