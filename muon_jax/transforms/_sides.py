"""Refuses a scale that depends on what a mask hides: which side of a matrix is its inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from muon_jax._checks import listed, refused
from muon_jax._types import ShapeScale
from muon_jax.routing._route import see_all
from muon_jax.routing._vocabulary import hides_bias
from muon_jax.transforms._scale import shape_scale
from muon_jax.trees._paths import hidden_by_masks, named_leaves
from muon_jax.trees._patterns import words_of
from muon_jax.views._matrix_axes import MatrixAxes


def check_sides(
    params: Any, views: Sequence[MatrixAxes | None], scale: str | ShapeScale, *, call: str
) -> None:
    """Refuses matrices whose scale would change if the other side were the inputs, as may be.

    A bias tells the sides of a matrix, whatever it is called. Where a mask hides it, the name must
    do, which is wrong for the few libraries that store a `kernel` as (outputs, inputs).

    Args:
      params: a tree, masked or not.
      views: the view of every leaf in order, None where nothing is to be checked.
      scale: as for `scale_by_muon`.
      call: the call that is named.

    Raises:
      ValueError: names the paths, and the way to let the rules see the whole tree.
    """
    factor = shape_scale(scale)
    hidden = hidden_by_masks(params)
    if factor is None or not hidden:
        return

    def depends(path: str, shape: tuple[int, ...], view: MatrixAxes | None) -> bool:
        if view is None or len(view.rows + view.cols) > 2 or not hides_bias(words_of(path), hidden):
            return False
        matrices = view.matrix_shapes(shape)
        return any(factor(rows, cols) != factor(cols, rows) for _, rows, cols in matrices)

    unsure = [
        path
        for (path, leaf), view in zip(named_leaves(params), views, strict=True)
        if depends(path, np.shape(leaf), view)
    ]
    if unsure:
        raise refused(
            call,
            f"scale={scale!r} depends on which side of {listed(unsure, 4)} is the inputs, and the "
            "biases that tell are masked",
            f"To show them, {see_all(call)}",
        )
