"""The moving average and its cast: values, and no overflow."""

import jax.numpy as jnp
import numpy as np
import pytest

from muon_jax.transforms._ema import cast_saturating, ema


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.95, jnp.float32(0.5)])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_it_is_the_weighted_mean_in_float32(decay, dtype):
    old, new = jnp.asarray([1.0, -2.0, 0.0], dtype), jnp.asarray([3.0, 0.5, -7.0], dtype)
    moved = ema(old, new, decay)
    assert moved.dtype == jnp.float32
    expected = float(decay) * np.float32(old) + (1 - float(decay)) * np.float32(new)
    np.testing.assert_allclose(moved, expected, rtol=1e-6, atol=2e-7 * 7)  # one ulp of the largest


@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_the_largest_numbers_is_finite(sign):
    decay = np.linspace(0, 0.999, 1000)
    largest = jnp.full(1000, sign * jnp.finfo(jnp.float32).max)
    assert jnp.isfinite(ema(largest, largest, decay)).all()


@pytest.mark.parametrize("decay", [1.0, jnp.float32(1 - 2**-24), jnp.bfloat16(0.999)])
def test_a_decay_that_rounds_to_one_keeps_the_average(decay):
    old, new = jnp.asarray([0.0, 2.0]), jnp.asarray([5.0, -3.0])
    np.testing.assert_allclose(ema(old, new, decay), old, atol=1e-6)
    assert (ema(jnp.zeros(2), new, decay) * new >= 0).all()  # never away from the new value


def test_without_decay_it_is_the_new_number_to_the_last_bit():
    new = jnp.asarray([1 / 3, 3.4e38, 1e-30], jnp.float32)
    np.testing.assert_array_equal(ema(jnp.ones(3), new, 0.0), new)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_what_a_format_can_hold_is_rounded_to_it_and_what_is_larger_saturates(dtype):
    largest = float(jnp.finfo(dtype).max)
    average = jnp.asarray([1 / 3, -2.5, 0.0, largest, -largest], jnp.float32)
    np.testing.assert_array_equal(cast_saturating(average, dtype), average.astype(dtype))
    beyond = jnp.asarray([3.4e38, -3.4e38], jnp.float32)
    if dtype != jnp.float32:
        np.testing.assert_array_equal(
            np.float32(cast_saturating(beyond, dtype)), [largest, -largest]
        )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_what_is_not_finite_stays_so(dtype):
    average = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    kept = cast_saturating(average, dtype)
    assert kept.dtype == dtype
    np.testing.assert_array_equal(np.float32(kept), average)
