"""Runs the exchange of shards wherever an update is traced: under jit, in a shard_map, eagerly."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import listed, refused
from muon_jax._types import Solve
from muon_jax.mesh._exchange import exchange_shards
from muon_jax.mesh._layout import CompilerLayout, Layout
from muon_jax.mesh._ownership import Cost, ShardedLeaf, group_size
from muon_jax.mesh._partitioning import solve_where_compiled
from muon_jax.mesh._specs import (
    along,
    axes_of_type,
    explicit_axes,
    known_sharding,
    manual_axes,
    partition_spec,
    spec_axes,
    tracks_varying,
)
from muon_jax.views._matrix_axes import MatrixAxes


def solve_on_mesh(
    leaves: Sequence[Array],
    views: Sequence[MatrixAxes | None],
    layout: Layout | CompilerLayout,
    solve: Solve,
    cost: Cost,
) -> list[Array]:
    """Orthogonalises the leaves that have a view, every matrix on one device.

    Args:
      leaves: all leaves of an update.
      views: of every leaf in order; a leaf without one passes through.
      layout: where the leaves with a view lie, from `resolve_layout`.
      solve: orthogonalises batches of whole matrices, of any shapes, each in its place.
      cost: the work of one matrix of (rows, cols), by which it is shared evenly.

    Returns:
      The leaves in the same order, shapes and dtypes, with the shardings that the layout wants.
    """
    done = list(leaves)
    places = [place for place, view in enumerate(views) if view is not None]
    arrays = [leaves[place] for place in places]
    matrix_axes = [view for view in views if view is not None]
    if isinstance(layout, CompilerLayout):
        results = solve_where_compiled(arrays, matrix_axes, layout, solve, cost)
    else:
        results = _solve_where_known(arrays, matrix_axes, layout, solve, cost)
    for place, result in zip(places, results, strict=True):
        done[place] = result
    return done


def _solve_where_known(
    arrays: Sequence[Array],
    views: Sequence[MatrixAxes],
    layout: Layout,
    solve: Solve,
    cost: Cost,
) -> list[Array]:
    """Enters a shard_map over the mesh axes that the surrounding one, if any, leaves open."""
    sizes = dict(layout.mesh.shape)
    manual = manual_axes()
    entered = [axis for axis in sizes if axis not in manual]
    # A mesh axis of one device shards nothing, but the types inside a shard_map tell of it too.
    divided = [axis for axis in sizes if sizes[axis] > 1 or axis in manual]

    leaves = []
    for array, view, held, wanted in zip(arrays, views, layout.held, layout.wanted, strict=True):
        as_held, as_wanted = spec_axes(held, array.ndim), spec_axes(wanted, array.ndim)
        shape = (
            size * group_size(set(axes) & set(manual), sizes)
            for size, axes in zip(array.shape, as_held, strict=True)
        )
        leaf = ShardedLeaf(
            tuple(shape),
            array.dtype.name,
            view,
            along(as_held, divided),
            along(as_wanted, divided),
        )
        leaves.append(leaf)
    settled = [leaf.settled() for leaf in leaves]

    def body(shards: Sequence[Array], lot: Array) -> list[Array]:
        del lot
        withheld = set(sizes) - set(manual_axes())
        if withheld:
            raise refused(
                layout.call,
                f"vmap maps over an axis that is sharded explicitly along {min(withheld)!r}",
                "Make that mesh axis Auto, or pass distribute='off'",
            )
        return exchange_shards(
            shards,
            settled,
            sizes,
            share=set(layout.share) & set(divided),
            solve=solve,
            cost=cost,
            wire_dtype=layout.wire_dtype,
        )

    # Nothing in the body would tell that members of a vmap lie spread along an axis, by its
    # spmd_axis_name, but JAX refuses what is sharded along that axis: a lot for every device.
    drawn = tuple(axis for axis in axes_of_type(layout.mesh, AxisType.Auto) if axis in layout.share)
    lots = jnp.zeros(group_size(drawn, sizes))
    if not entered:
        return body(arrays, lots)
    sources = [
        held if leaf == same else wanted
        for leaf, same, held, wanted in zip(
            leaves, settled, layout.held, layout.wanted, strict=True
        )
    ]
    in_specs, out_specs = (
        [
            partition_spec(along(spec_axes(spec, array.ndim), entered))
            for array, spec in zip(arrays, specs, strict=True)
        ]
        for specs in (sources, layout.wanted)
    )
    where: dict[str, Any] = {"axis_names": set(entered)} if manual else {"mesh": layout.mesh}
    on_every_device = jax.shard_map(
        body,
        in_specs=(in_specs, partition_spec((drawn,))),
        out_specs=out_specs,
        check_vma=bool(manual) and tracks_varying(manual),
        **where,
    )
    try:
        return on_every_device([*map(_moved, arrays, sources)], lots)
    except ValueError as error:
        if "spmd_axis_name" not in str(error):
            raise
        raise refused(
            layout.call,
            "vmap spreads its members by spmd_axis_name along one of the mesh axes along which "
            f"work is shared, {listed(map(repr, drawn))}",
            "Name the others alone: Distribution(mesh, specs, axes=...)",
        ) from error


def _moved(array: Array, spec: PartitionSpec) -> Array:
    """Reshards an array of an Explicit mesh, which a shard_map does not do by itself."""
    known = known_sharding(array)
    if known is None or not explicit_axes(known.mesh) or known.spec == spec:
        return array
    return jax.reshard(array, NamedSharding(known.mesh, spec))
