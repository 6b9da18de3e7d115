"""`inverse_sqrt` by number of steps, and the rank that `polar_by_svd` finds."""

import jax.numpy as jnp
import numpy as np
import pytest
from matrices import singular_values, with_spectrum

from muon_jax import inverse_sqrt, polar_by_svd

VALUES = np.array([3.0, 1.0, 0.3, 0.03])


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shape", [(4, 4), (4, 7), (7, 4)])
def test_each_step_is_newtons_on_every_singular_value(steps, shape):
    bounded = VALUES / np.linalg.norm(VALUES, 8)
    root, inverse = bounded**2, 1.0
    for _ in range(steps):
        factor = (3 - inverse * root) / 2
        root, inverse = root * factor, inverse * factor
    found = inverse_sqrt(steps)(jnp.asarray(with_spectrum(VALUES, *shape)[None], jnp.float32))
    np.testing.assert_allclose(singular_values(found[0]), inverse * bounded, rtol=1e-5)


def test_steps_are_fifteen_by_default():
    assert inverse_sqrt() == inverse_sqrt(15) != inverse_sqrt(16)


def test_a_long_vector_is_no_noise():
    vector = jnp.ones((1, 1, 1 << 23), jnp.float32)
    assert float(jnp.linalg.norm(polar_by_svd()(vector))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("shape", [(3, 400), (400, 3)])
def test_what_rounding_of_the_long_side_leaves_counts_as_zero(shape):
    """Values below eps times the root of the longer side, or the shorter, count as zero."""
    eps = float(np.finfo(np.float32).eps)
    values = np.array([1.0, 40 * eps, 10 * eps])
    matrix = jnp.asarray(with_spectrum(values, *shape)[None], jnp.float32)
    np.testing.assert_allclose(singular_values(polar_by_svd()(matrix)[0]), [1, 1, 0], atol=1e-3)
