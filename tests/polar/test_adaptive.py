"""polar_to stops when the residual is small, or after its last step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian, log_uniform, singular_values

import muon_jax

HARD = jnp.asarray(log_uniform(16, 24, 1e4), jnp.float32)
EASY = jnp.asarray(gaussian(16, 24), jnp.float32)
ACCURATE = jax.jit(muon_jax.newton_schulz("accurate"))


def residual(matrix) -> float:
    """Returns the root mean square of σ² − 1, in float64."""
    return float(np.sqrt(np.mean((singular_values(matrix) ** 2 - 1) ** 2)))


def polished(matrix, steps: int):
    """Takes steps x ← (15x − 10x³ + 3x⁵)/8 in float64."""
    x = np.asarray(matrix, np.float64)
    for _ in range(steps):
        gram = x @ x.T
        x = (15 * x - 10 * gram @ x + 3 * gram @ gram @ x) / 8
    return x


@pytest.mark.parametrize("tolerance", [0.1, 1e-3, 1e-5])
def test_the_residual_is_under_the_tolerance(tolerance):
    assert residual(ACCURATE(HARD[None])[0]) > 0.1
    (result,) = jax.jit(muon_jax.polar_to(tolerance))(HARD[None])
    assert residual(result) <= tolerance


@pytest.mark.parametrize("max_steps", [1, 2])
def test_it_stops_after_its_last_step(max_steps):
    (result,) = jax.jit(muon_jax.polar_to(1e-5, max_steps=max_steps))(HARD[None])
    expected = polished(ACCURATE(HARD[None])[0], max_steps)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    assert residual(result) > 1e-2


def test_what_is_under_the_tolerance_stays_as_it_is():
    """Also in a batch with a matrix that has not converged."""
    alone = ACCURATE(EASY[None])[0]
    assert residual(alone) < 0.05
    beside = jax.jit(muon_jax.polar_to(0.05))(jnp.stack([EASY, HARD]))[0]
    np.testing.assert_allclose(beside, alone, rtol=0, atol=1e-6)
    assert np.abs(polished(alone, 1) - alone).max() > 1e-5


def test_a_tolerance_that_float32_cannot_reach_is_refused():
    assert muon_jax.polar_to(1e-5) == muon_jax.polar_to(1e-5, max_steps=20)
    for tolerance in (0.99e-5, 1.0):
        with pytest.raises(ValueError, match=r"polar_to\(tolerance=.*in \[1e-05, 1\)"):
            muon_jax.polar_to(tolerance)
