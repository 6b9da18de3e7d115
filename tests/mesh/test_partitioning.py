"""The axis that vmap adds in front is one more batch axis of a view."""

import jax
import numpy as np
import pytest

from muon_jax import MatrixAxes, Split
from muon_jax.mesh._partitioning import _stacked


@pytest.mark.parametrize(
    "view",
    [
        MatrixAxes(rows=0, cols=(1, 2)),
        MatrixAxes(rows=-3, cols=(-2, -1)),
        MatrixAxes(rows=(2, 0), cols=-2),
        MatrixAxes(rows=0, cols=2, split=Split((1, 3))),
    ],
)
def test_a_stacked_view_reads_each_leaf_as_the_view_reads_one(view, rng):
    leaves = rng.normal(size=(5, 2, 3, 4)).astype(np.float32)
    stacked = _stacked(view).to_matrices(leaves)
    apart = jax.vmap(view.to_matrices)(leaves)
    for parts, part in zip(stacked, apart, strict=True):
        np.testing.assert_array_equal(parts, part.reshape(-1, *part.shape[2:]))
