"""Products in a format: both operands are rounded to it, and nothing else is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian

from muon_jax._checks import named
from muon_jax.polar._precision import ARITHMETICS, arithmetic

LEFT, RIGHT = (jnp.asarray(gaussian(5, 64, seed=seed), jnp.float32) for seed in (0, 1))


@pytest.mark.parametrize("name", ARITHMETICS)
def test_operands_are_rounded_and_sums_are_not(name):
    """On CPUs `tensorfloat32` is float32."""
    known = arithmetic(name)
    operands = getattr(jnp, name, jnp.float32)
    assert known.rounded(LEFT).dtype == operands
    left, right = (np.asarray(side.astype(operands), np.float64) for side in (LEFT, RIGHT))
    for given in (LEFT, known.rounded(LEFT)):
        product, gram = known.multiply(given, RIGHT.mT), known.gram(given)
        assert product.dtype == gram.dtype == jnp.float32
        np.testing.assert_allclose(product, left @ right.T, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gram, left @ left.T, rtol=1e-5, atol=1e-5)


def test_a_gram_matrix_is_formed_without_a_transpose():
    """XLA:CPU would widen half-precision operands if one were a transpose of the other."""
    gram = arithmetic("bfloat16").gram
    assert "transpose" not in str(jax.make_jaxpr(gram)(LEFT))


@pytest.mark.parametrize(("name", "precision"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH")])
def test_backends_are_told_how_far_they_may_round(name, precision):
    known = arithmetic(name)
    assert f"Precision.{precision}" in str(jax.make_jaxpr(known.multiply)(LEFT, RIGHT.mT))
    assert f"Precision.{precision}" in str(jax.make_jaxpr(known.gram)(LEFT))


@pytest.mark.parametrize("name", ARITHMETICS)
def test_roundoff_is_half_the_distance_of_two_neighbours(name):
    known = arithmetic(name)
    digits = {"float32": 24, "tensorfloat32": 11, "float16": 11, "bfloat16": 8}[name]
    assert known.roundoff == 2.0**-digits
    assert known.rounds == (digits < 24)
    assert known is ARITHMETICS[name]


@pytest.mark.parametrize(
    ("dtype", "shown"), [("float64", "float64"), (jnp.int32, "int32"), (object(), "<object .*>")]
)
def test_other_formats_are_refused_by_the_call(dtype, shown):
    message = rf"muon_jax\.call\(dtype='{shown}'\): choose one of 'float32'"
    with named("call"), pytest.raises(ValueError, match=message):
        arithmetic(dtype)
