"""Orthogonalises every matrix of a tree, under its view."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from muon_jax import _checks
from muon_jax._types import Batch, Orthogonalizer, Scale
from muon_jax.mesh._distribution import Distribute, check_distribute
from muon_jax.mesh._layout import resolve_layout
from muon_jax.mesh._notice import warn_if_distributed
from muon_jax.mesh._run import solve_on_mesh
from muon_jax.mesh._slots import quintic_flops
from muon_jax.mesh._specs import with_explicit_as_auto
from muon_jax.polar._batching import orthogonalize_all
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.routing._route import matrix_axes, route
from muon_jax.routing._traced import AxesLike, TracedAxes, views_by_leaf
from muon_jax.transforms._scale import check_scale, scaler
from muon_jax.trees._paths import named_leaves
from muon_jax.views._matrix_axes import MatrixAxes, solve_leaves

Tree = TypeVar("Tree")


@_checks.named("orthogonalize_tree")
def orthogonalize_tree(
    tree: Tree,
    axes: AxesLike = None,
    *,
    orthogonalizer: Orthogonalizer | None = None,
    scale: Scale = "none",
    chunk_bytes: int | None = None,
    distribute: Distribute = "auto",
) -> Tree:
    """Replaces every matrix of a tree by its nearest orthogonal matrix, times a scale.

    This is `scale_by_muon` without momentum. Leaves of one shape or its transpose share one
    compiled computation.

    Args:
      tree: a tree of floating-point arrays.
      axes: views of leaves as matrices: a `MatrixAxes` for all, a prefix tree of them (None leaves
        a leaf unchanged), a function from the tree to such a tree, or the result of `trace_axes`.
        None applies the default rules.
      orthogonalizer: from (batch, rows, cols) to the same shape; None is `newton_schulz()`.
      scale: as for `scale_by_muon`; `"none"` leaves the results orthogonal.
      chunk_bytes: bound on the float32 size of the matrices that are orthogonalised at once; None
        chooses by backend.
      distribute: which device orthogonalises which matrix on a mesh, as for `scale_by_muon`.

    Returns:
      A tree of the same structure, shapes, dtypes and shardings.

    Raises:
      TypeError or ValueError: if an argument is unusable, or a view does not fit its leaf.

    Examples:
      >>> import jax, muon_jax
      >>> layer = {"kernel": jax.random.normal(jax.random.key(0), (8, 4)),
      ...          "bias": jax.numpy.ones(4)}
      >>> nearest = muon_jax.orthogonalize_tree(layer)["kernel"]
      >>> bool(jax.numpy.linalg.norm(nearest, 2) < 1.3)
      True
    """
    solve = tree_solver(orthogonalizer, scale, chunk_bytes, distribute)
    return solve(tree, resolve_views(tree, axes), tree)


TreeSolver: TypeAlias = Callable[[Any, Sequence[MatrixAxes | None], Any], Any]
"""From a tree, the views of its leaves and a tree whose shardings the results get to the scaled
polar factors; leaves without a view pass through."""


def tree_solver(
    orthogonalizer: Orthogonalizer | None,
    scale: Scale,
    chunk_bytes: int | None,
    distribute: Distribute,
) -> TreeSolver:
    """Makes the function that orthogonalises and scales the whole matrices of a tree on any mesh.

    Raises:
      TypeError or ValueError: names the unusable argument.
    """
    check_scale(scale)
    check_distribute(distribute)
    if chunk_bytes is not None:
        _checks.check_positive_int("chunk_bytes", chunk_bytes)
    polar = newton_schulz() if orthogonalizer is None else orthogonalizer
    _checks.check_orthogonalizer(polar)
    rescale = scaler(scale)
    cost = functools.cache(flops_of(polar) or quintic_flops)

    def solve(matrices: Sequence[Batch]) -> list[Batch]:
        return [rescale(each) for each in orthogonalize_all(matrices, polar, chunk_bytes)]

    def solve_tree(tree: Any, views: Sequence[MatrixAxes | None], like: Any) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        views = [view if leaf.size else None for leaf, view in zip(leaves, views, strict=True)]
        layout = resolve_layout(tree, views, distribute, like)
        if layout is None and distribute != "off" and leaves:
            leaves[0] = warn_if_distributed(leaves[0])
        viewed = {place: view for place, view in enumerate(views) if view is not None}
        matrix_axes, targets = list(viewed.values()), jax.tree.leaves(like)
        arrays, targets = [leaves[place] for place in viewed], [targets[place] for place in viewed]
        if layout is None:

            def solve_all(*arrays: Array) -> list[Array]:
                return solve_leaves(arrays, matrix_axes, solve)

            results = with_explicit_as_auto(solve_all, targets)(*arrays)
        else:
            results = solve_on_mesh(
                arrays,
                matrix_axes,
                targets,
                layout,
                solve=solve,
                cost=cost,
                operands=functools.partial(_operands, polar),
            )
        for place, result in zip(viewed, results, strict=True):
            leaves[place] = result
        return treedef.unflatten(leaves)

    return solve_tree


def flops_of(polar: Orthogonalizer) -> Callable[[int, int], int] | None:
    """Returns the method that counts the FLOPs for a matrix of (rows, cols), or None."""
    flops: Any = getattr(polar, "flops", None)
    return flops if callable(flops) else None  # pyright: ignore[reportReturnType]


def _operands(polar: Orthogonalizer, platform: str) -> Callable[[int, int], str | None]:
    """Returns from (rows, cols) to the dtype to which an orthogonalizer rounds, or None."""
    on = getattr(polar, "on", None)
    return on(platform).operands if on else lambda rows, cols: None


def resolve_views(tree: Any, axes: AxesLike) -> list[MatrixAxes | None]:
    """Returns the view of every leaf in order, checked against its shape."""
    if isinstance(axes, TracedAxes):
        return [found.axes for found in jax.tree.leaves(route(tree, axes=axes))]
    views = views_by_leaf(matrix_axes if axes is None else axes, tree)
    for (path, leaf), view in zip(named_leaves(tree), views, strict=True):
        if view is not None:
            view.check(jnp.shape(leaf), path=path)
    return views
