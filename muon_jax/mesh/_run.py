"""Orthogonalises sharded leaves under jit, inside a shard_map, and eagerly."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from muon_jax._types import Solve
from muon_jax.mesh._constraints import solve_by_constraints
from muon_jax.mesh._exchange import ShardedLeaf, exchange_shards
from muon_jax.mesh._layout import Layout
from muon_jax.mesh._slots import Cost
from muon_jax.mesh._specs import (
    along,
    group_size,
    manual_axes,
    mesh_of_type,
    spec_axes,
    with_explicit_as_auto,
)
from muon_jax.mesh._stacks import WireDtype
from muon_jax.views._matrix_axes import MatrixAxes


def solve_on_mesh(
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
      arrays: the leaves.
      views: how each leaf is a batch of matrices.
      like: arrays whose shardings the results get, outside of a shard_map.
      layout: from `resolve_layout`.
      solve: orthogonalises batches of matrices of any shapes.
      cost: the work of one matrix, for load balancing.
      operands: from a platform and (rows, cols) to the dtype to which the orthogonalizer rounds its
        input, or None. Communication in that dtype loses nothing.
    """
    wire_dtype = _wire_dtype(layout, operands)
    if layout.specs is not None:
        sizes, manual = layout.mesh.shape, manual_axes()
        leaves = []
        for array, view, given in zip(arrays, views, layout.specs, strict=True):
            spec = along(spec_axes(given, array.ndim), manual)
            shape = (n * group_size(axes, sizes) for n, axes in zip(array.shape, spec, strict=True))
            leaves.append(ShardedLeaf(tuple(shape), array.dtype.name, view, spec))

        def exchange(*shards: Array) -> list[Array]:
            return exchange_shards(
                shards,
                leaves,
                sizes,
                share=set(layout.share) & set(manual),
                solve=solve,
                cost=cost,
                wire_dtype=wire_dtype,
            )

        return with_explicit_as_auto(exchange, arrays)(*arrays)

    def plain(arrays: list[Array], like: list[Array]) -> list[Array]:
        meshes = filter(None, map(mesh_of_type, [*arrays, *like]))
        return solve_by_constraints(
            layout.kinds,
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
        return solve_on_mesh(arrays, stacked, like, layout, **ways), [True] * len(arrays)

    @jax.custom_jvp
    def run(arrays: list[Array], like: list[Array]) -> list[Array]:
        return with_vmap(arrays, like)

    @run.defjvp
    def _(primals, tangents):
        return jax.jvp(with_explicit_as_auto(plain, primals[1]), primals, tangents)

    traced = any(isinstance(array, Tracer) for array in (*arrays, *like))
    return (run if traced else jax.jit(run))(list(arrays), list(like))


def _wire_dtype(layout: Layout, operands: Callable[[str], WireDtype]) -> WireDtype:
    """Returns the user's dtype, or the one to which the orthogonalizer rounds on this platform."""
    if layout.wire_dtype is not None:
        return lambda rows, cols: layout.wire_dtype
    device = layout.mesh.abstract_mesh.abstract_device
    platform = getattr(device, "platform", None)  # JAX 0.10.0 does not know it
    return operands(platform) if platform else lambda rows, cols: None
