"""Attention heads as matrices of their own."""

import math

from muon_jax.routing._route import Route
from muon_jax.views._matrix_axes import MatrixAxes

PROJECTIONS = frozenset({"attention input", "outputs by bias", "fused attention"})
"""Default rules whose views may have an axis of heads among the outputs."""


def heads_apart(found: Route) -> tuple[MatrixAxes | None, float]:
    """Returns the view that separates the heads of a projection (inputs, heads, size).

    Orthogonal columns of `inputs` entries have the same RMS for one head as for all of them, but
    the scale 0.2·√outputs is smaller for one.

    Returns:
      The view, which is that of the route for all other parameters, and the factor on the scale of
      a head that gives its update the RMS of the update of the whole projection.
    """
    view = found.axes
    if view is None or view.split or len(view.cols) != 2:
        return view, 1.0
    heads, size = (found.shape[axis] for axis in view.cols)
    inputs = math.prod(found.shape[axis] for axis in view.rows)
    gain = math.sqrt(heads * max(inputs, size) / max(inputs, heads * size))
    return MatrixAxes(view.rows, view.cols[1], whole=view), gain
