"""`array_annotations` finds wrong shapes and dtypes."""

import jax.numpy as jnp
import numpy as np
import pytest
from array_annotations import PACKAGES, checked
from jaxtyping import Array, Float, Int, TypeCheckError, jaxtyped

import muon_jax


def transposed(
    matrix: Float[Array, "rows cols"], *others: Int[Array, "rows"] | None
) -> Float[Array, "cols rows"]:
    return matrix.T if matrix.size != 4 else matrix[:1]


check = jaxtyped(transposed, typechecker=checked)
MATRIX, COUNTS = jnp.ones((2, 3)), jnp.ones(2, int)


@pytest.mark.parametrize(
    "arguments",
    [
        (jnp.ones((2, 2)),),  # returns another shape
        (MATRIX, jnp.ones(3, int)),
        (MATRIX, COUNTS, None, COUNTS[:1]),
        (MATRIX, COUNTS.astype(float)),
        (MATRIX.astype(int),),
    ],
)
def test_a_wrong_array_is_caught(arguments):
    with pytest.raises(TypeCheckError, match="transposed"):
        check(*arguments)


def test_only_arrays_of_the_annotated_kind_are_compared():
    assert check(MATRIX, None, COUNTS, np.ones(5)).shape == (3, 2)
    assert check(np.ones((2, 3), int)).shape == (3, 2)
    with pytest.raises(AttributeError):  # of the function itself, which runs before the check
        check("no array")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_is_decorated(package):
    function = {
        "muon_jax.views": muon_jax.MatrixAxes.to_matrices,
        "muon_jax.polar": muon_jax.polar_by_svd,
        "muon_jax.transforms": muon_jax.skip_nonfinite,
        "muon_jax.clip": muon_jax.clip_qk,
    }[package]
    while "jaxtyping" not in function.__code__.co_filename:
        function = function.__wrapped__
