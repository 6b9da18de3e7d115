"""Measures every matrix of a tree, under Muon's views."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.diagnostics._spectra import (
    entropy_of,
    residual_up_to_scale_of,
    scaled_singular_values,
    stable_rank_of,
    update_to_weight_rms,
)
from muon_jax.mesh._specs import replicated
from muon_jax.transforms._orthogonalize import AxesLike, resolve_views
from muon_jax.trees._paths import named_leaves


class Measurement(NamedTuple):
    """The result of `measure` for one parameter: arrays with one entry for each of its matrices.

    Attributes:
      entropy: `singular_value_entropy` of the weights.
      stable_rank: `stable_rank` of the weights.
      update_residual: `orthogonality_residual` of the updates, up to scale.
      update_to_weight: `update_to_weight_rms`.
    """

    entropy: Float[Array, "matrices"]
    stable_rank: Float[Array, "matrices"]
    update_residual: Float[Array, "matrices"]
    update_to_weight: Float[Array, "matrices"]


@_checks.named("diagnostics.by_matrix")
def by_matrix(function: Callable[..., Any], *trees: Any, axes: AxesLike = None) -> dict[str, Any]:
    """Applies a function of matrices to every matrix of a tree.

    Args:
      function: from (batch, rows, cols), one such array for each tree, to an array (batch,) or a
        tree of them, such as `stable_rank`.
      trees: trees of arrays of the same structure, such as updates and parameters.
      axes: views of leaves as matrices, as for `scale_by_muon`: a `MatrixAxes`, a prefix tree of
        them (None skips a leaf), or a function from the first tree to such a tree; None applies the
        default rules.

    Returns:
      By path, the result of the function for each leaf that has a view, with one entry for each
      matrix; the layers of a stack are the major part, the parts of a split the minor one.

    Raises:
      TypeError or ValueError: as `matrix_axes` does, and if the trees or a view do not fit.

    Examples:
      >>> import muon_jax.diagnostics
      >>> params = {"dense": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
      >>> by_matrix(muon_jax.diagnostics.stable_rank, params)
      {'dense/kernel': Array([4.], dtype=float32)}
    """
    if not trees:
        raise _checks.refused("there is no tree", "Give at least one")
    first, *others = trees
    views = resolve_views(first, axes)
    structure = jax.tree.structure(first)
    columns = [structure.flatten_up_to(tree) for tree in others]
    found = {}
    for (path, leaf), *rest, view in zip(named_leaves(first), *columns, views, strict=True):
        if view is not None:
            leaves = map(replicated, (leaf, *rest))
            parts = zip(*map(view.to_matrices, leaves), strict=True)
            results = [function(*part) for part in parts]
            found[path] = jax.tree.map(lambda *each: jnp.concatenate(each), *results)
    return found


@_checks.named("diagnostics.measure")
def measure(updates: Any, params: Any, *, axes: AxesLike = None) -> dict[str, Measurement]:
    """Measures the weights and the update of every matrix, with one SVD of each.

    Args:
      updates: the updates, as for `optax.apply_updates`.
      params: the parameters.
      axes: views of leaves as matrices, as for `scale_by_muon`; None applies the default rules.

    Returns:
      A `Measurement` for each parameter that has a view, by path.

    Raises:
      TypeError or ValueError: as `by_matrix`.

    Examples:
      >>> params = {"dense": {"kernel": jnp.eye(4)}}
      >>> updates = {"dense": {"kernel": -0.25 * jnp.eye(4)}}
      >>> float(measure(updates, params)["dense/kernel"].update_to_weight[0])
      0.25
    """
    return by_matrix(_measure_step, params, updates, axes=axes)


def _measure_step(weights: Matrices, updates: Matrices) -> Measurement:
    values = scaled_singular_values(weights)
    return Measurement(
        entropy_of(values),
        stable_rank_of(values),
        residual_up_to_scale_of(scaled_singular_values(updates)),
        update_to_weight_rms(updates, weights),
    )
