"""Orthogonalises sharded leaves under jit, inside a shard_map, and eagerly."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import listed, refused
from muon_jax._types import Solve
from muon_jax.mesh._constraints import solve_by_constraints
from muon_jax.mesh._exchange import ShardedLeaf, exchange_shards
from muon_jax.mesh._layout import Layout
from muon_jax.mesh._slots import Cost
from muon_jax.mesh._specs import (
    along,
    axes_of_type,
    group_size,
    known_sharding,
    manual_axes,
    mesh_of_type,
    partition_spec,
    spec_axes,
    tracks_varying,
    with_explicit_as_auto,
)
from muon_jax.mesh._stacks import WireDtype
from muon_jax.views._matrix_axes import MatrixAxes


def solve_on_mesh(
    paths: Sequence[str],
    arrays: Sequence[Array],
    views: Sequence[MatrixAxes],
    like: Sequence[Array],
    layout: Layout,
    *,
    solve: Solve,
    cost: Cost,
    operands: Callable[[str], WireDtype],
) -> list[Array]:
    """Orthogonalises leaves on a mesh, each whole matrix on one device.

    Args:
      paths: of the leaves.
      arrays: the leaves.
      views: how each leaf is a batch of matrices.
      like: arrays whose shardings the results get if the layout has no specs.
      layout: from `resolve_layout`.
      solve: orthogonalises batches of matrices of any shapes.
      cost: the work of one matrix, for load balancing.
      operands: from a platform and (rows, cols) to the dtype to which the orthogonalizer rounds its
        input, or None. Communication in that dtype loses nothing.
    """
    wire_dtype = _wire_dtype(layout, operands)
    if layout.specs is not None:
        return _solve_where_known(arrays, views, layout, solve, cost, wire_dtype)

    def plain(arrays: list[Array], like: list[Array]) -> list[Array]:
        meshes = filter(None, map(mesh_of_type, [*arrays, *like]))
        return solve_by_constraints(
            paths,
            arrays,
            views,
            like,
            mesh=next(meshes, layout.mesh.abstract_mesh),
            share=layout.share,
            solve=solve,
            cost=cost,
            wire_dtype=wire_dtype,
        )

    @custom_vmap
    def with_vmap(arrays: list[Array], like: list[Array]) -> list[Array]:
        return with_explicit_as_auto(plain, like)(arrays, like)

    @with_vmap.def_vmap
    def _(size, batched, arrays, like):
        """Treats the axis that vmap adds as one more batch axis."""
        arrays, like = jax.tree.map(
            lambda array, has: array if has else jnp.broadcast_to(array, (size, *array.shape)),
            (arrays, like),
            tuple(batched),
        )
        stacked = [view.below_an_axis() for view in views]
        ways = {"solve": solve, "cost": cost, "operands": operands}
        return solve_on_mesh(paths, arrays, stacked, like, layout, **ways), [True] * len(arrays)

    @jax.custom_jvp
    def run(arrays: list[Array], like: list[Array]) -> list[Array]:
        return with_vmap(arrays, like)

    @run.defjvp
    def _(primals, tangents):
        return jax.jvp(with_explicit_as_auto(plain, primals[1]), primals, tangents)

    return run(list(arrays), list(like))


def _wire_dtype(layout: Layout, operands: Callable[[str], WireDtype]) -> WireDtype:
    """Returns the user's dtype, or the one to which the orthogonalizer rounds on this platform."""
    if layout.wire_dtype is not None:
        return lambda rows, cols: layout.wire_dtype
    device = layout.mesh.abstract_mesh.abstract_device
    return operands(device.platform) if device else lambda rows, cols: None


def _solve_where_known(
    arrays: Sequence[Array],
    views: Sequence[MatrixAxes],
    layout: Layout,
    solve: Solve,
    cost: Cost,
    wire_dtype: WireDtype,
) -> list[Array]:
    """Enters a shard_map over the mesh axes that are not manual yet."""
    sizes = dict(layout.mesh.shape)
    manual = manual_axes()
    entered = [axis for axis in sizes if axis not in manual]
    # A mesh axis of one device shards nothing, but types inside a shard_map include it.
    divided = [axis for axis in sizes if sizes[axis] > 1 or axis in manual]

    leaves = []
    for array, view, specs in zip(arrays, views, layout.specs or (), strict=True):
        in_spec, out_spec = (spec_axes(spec, array.ndim) for spec in specs)
        shape = tuple(
            size * group_size(set(axes) & set(manual), sizes)
            for size, axes in zip(array.shape, in_spec, strict=True)
        )
        ways = along(in_spec, divided), along(out_spec, divided)
        leaves.append(ShardedLeaf(shape, array.dtype.name, view, *ways))
    feasible = [leaf.feasible(sizes) for leaf in leaves]

    def body(shards: Sequence[Array], probe: Array) -> list[Array]:
        del probe
        withheld = set(sizes) - set(manual_axes())
        if withheld:
            raise refused(
                f"vmap maps over an axis that is sharded explicitly along {min(withheld)!r}",
                "Make that mesh axis Auto, or pass distribute='off'",
            )
        return exchange_shards(
            shards,
            feasible,
            sizes,
            share=set(layout.share) & set(divided),
            solve=solve,
            cost=cost,
            wire_dtype=wire_dtype,
        )

    # The body cannot see that vmap shards its axis over a mesh axis by `spmd_axis_name`. JAX raises
    # an error if an operand is sharded over the same mesh axis, so the probe is.
    shared = tuple(
        axis for axis in axes_of_type(layout.mesh, AxisType.Auto) if axis in layout.share
    )
    probe = jnp.zeros(group_size(shared, sizes))
    if not entered:
        return body(arrays, probe)
    sources = [
        specs[0] if leaf == same else specs[1]
        for leaf, same, specs in zip(leaves, feasible, layout.specs or (), strict=True)
    ]
    targets = [out_spec for _, out_spec in layout.specs or ()]
    in_specs, out_specs = (
        [
            partition_spec(along(spec_axes(spec, array.ndim), entered))
            for array, spec in zip(arrays, specs, strict=True)
        ]
        for specs in (sources, targets)
    )
    where: dict[str, Any] = {"axis_names": set(entered)} if manual else {"mesh": layout.mesh}
    on_every_device = jax.shard_map(
        body,
        in_specs=(in_specs, partition_spec((shared,))),
        out_specs=out_specs,
        check_vma=bool(manual) and tracks_varying(manual),
        **where,
    )
    try:
        return on_every_device([*map(_resharded, arrays, sources)], probe)
    except ValueError as error:
        if "spmd_axis_name" not in str(error):
            raise
        raise refused(
            "vmap shards its axis by spmd_axis_name over one of the mesh axes over which matrices "
            f"are distributed, {listed(map(repr, shared))}",
            "Name only the others: Distribution(mesh, specs, axes=...)",
        ) from error


def _resharded(array: Array, spec: PartitionSpec) -> Array:
    """Reshards an array on Explicit axes, because shard_map does not."""
    known = known_sharding(array)
    if known is None or not axes_of_type(known.mesh, AxisType.Explicit) or known.spec == spec:
        return array
    return jax.reshard(array, NamedSharding(known.mesh, spec))
