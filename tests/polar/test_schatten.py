"""Steepest descent under Schatten norms: duality, p = 1 and p = ∞."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import gaussian, log_uniform, polar, singular_values, with_spectrum

import muon_jax

EXPONENTS = (1, 1.5, 2, 4, math.inf)
each_p = pytest.mark.parametrize("p", EXPONENTS)
SHAPES = [(8, 8), (6, 15), (15, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@functools.cache
def compiled(p: float):
    return jax.jit(muon_jax.steepest_descent(p))


def apply(p: float, matrix, dtype=jnp.float32):
    """Applies a direction to one NumPy matrix; returns NumPy's float64."""
    result = compiled(p)(jnp.asarray(np.asarray(matrix)[None]).astype(dtype))
    return np.asarray(result[0].astype(jnp.float32), np.float64)


def schatten(matrix, p: float) -> float:
    return float(np.linalg.norm(singular_values(matrix), p))


def conjugate(p: float) -> float:
    return math.inf if p == 1 else 1 if p == math.inf else p / (p - 1)


# Direction


@each_shape
@pytest.mark.parametrize("p", [p for p in EXPONENTS if p > 1])
def test_singular_values_are_taken_to_a_power_and_no_direction_turns(p, shape):
    matrix = log_uniform(*shape, 30)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    powers = values ** (1 / (p - 1))
    expected = (left * powers) @ right * math.sqrt(min(shape)) / np.linalg.norm(powers)
    np.testing.assert_allclose(apply(p, matrix), expected, atol=2e-5)


@each_shape
@each_p
def test_the_slope_is_the_dual_norm(p, shape):
    gradient = log_uniform(*shape, 30)
    step = apply(p, gradient)
    slope = np.sum(gradient * step) / schatten(step, p)
    np.testing.assert_allclose(slope, schatten(gradient, conjugate(p)), rtol=1e-5)


@pytest.mark.parametrize("p", [1, 1.5, 4])
@given(seed=st.integers(0, 2**16), log_condition=st.floats(0, 3))
def test_no_other_step_of_the_same_norm_descends_faster(p, seed, log_condition):
    gradient = log_uniform(5, 7, 10**log_condition, seed)
    step, other = apply(p, gradient), gaussian(5, 7, seed=seed + 1)
    near = step + 0.1 * other
    best = np.sum(gradient * step) / schatten(step, p)
    for each in (other, near):
        assert np.sum(gradient * each) / schatten(each, p) <= best * (1 + 1e-5)


@each_p
@pytest.mark.parametrize("rank", [1, 3, 6])
@each_shape
def test_its_frobenius_norm_is_that_of_the_polar_factor(p, shape, rank):
    values = np.geomspace(1, 0.1, min(shape)) * (np.arange(min(shape)) < rank)
    step = apply(p, with_spectrum(values, *shape))
    np.testing.assert_allclose(np.linalg.norm(step), math.sqrt(rank), rtol=1e-5)


@pytest.mark.parametrize("p", [2, 4, math.inf])
def test_updates_of_muon_have_the_same_rms_for_every_p(p):
    tx = muon_jax.scale_by_muon(orthogonalizer=muon_jax.steepest_descent(p))
    gradients = {"dense": {"kernel": jnp.asarray(log_uniform(6, 15, 30), jnp.float32)}}
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    rms = jnp.sqrt(jnp.mean(jnp.square(updates["dense"]["kernel"])))
    np.testing.assert_allclose(rms, 0.2, rtol=1e-5)


# Limits


@each_shape
def test_infinity_is_the_polar_factor_to_the_last_bit(shape):
    batch = np.stack([log_uniform(*shape, 1e3), with_spectrum(np.arange(min(shape)) < 2, *shape)])
    matrices = jnp.asarray(batch, jnp.float32)
    exact = jax.jit(muon_jax.polar_by_svd())(matrices)
    np.testing.assert_array_equal(compiled(math.inf)(matrices), exact)


@each_shape
def test_two_is_the_gradient_itself_normalised(shape):
    matrix = gaussian(*shape)
    expected = matrix * math.sqrt(min(shape)) / np.linalg.norm(matrix)
    np.testing.assert_allclose(apply(2, matrix), expected, atol=1e-5)


def test_one_is_the_largest_direction_alone():
    left, _, right = np.linalg.svd(matrix := gaussian(5, 7), full_matrices=False)
    expected = math.sqrt(5) * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(apply(1, matrix), expected, atol=1e-4)


@pytest.mark.parametrize(("near", "end"), [(1.0001, 1), (1.9999, 2), (2.0001, 2), (1e6, math.inf)])
def test_it_is_continuous_in_p(near, end):
    matrix = log_uniform(6, 15, 30)
    np.testing.assert_allclose(apply(near, matrix), apply(end, matrix), atol=2e-3)


def test_a_larger_p_spreads_the_spectrum_more_evenly():
    matrix = log_uniform(6, 15, 30)
    largest = [singular_values(apply(p, matrix))[0] for p in EXPONENTS]
    assert largest == sorted(largest, reverse=True)
    np.testing.assert_allclose(largest[-1], 1, atol=1e-5)


@pytest.mark.parametrize("p", [p for p in EXPONENTS if p > 1])  # with one, rounding decides
def test_where_all_directions_are_alike_every_p_agrees(p):
    for matrix in (polar(gaussian(6, 15)), np.outer([3.0, 4.0], [0.6, 0.0, 0.8]) / 5):
        np.testing.assert_allclose(apply(p, matrix), matrix, atol=1e-5)


# Range


@pytest.mark.parametrize("p", [1, 2, 32])
@given(
    seed=st.integers(0, 2**16),
    log_condition=st.floats(0, 9),
    log_scale=st.floats(-44, 37),
    rank=st.integers(1, 5),
)
def test_finite_input_gives_a_finite_step_of_bounded_size(p, seed, log_condition, log_scale, rank):
    values = np.geomspace(1, 10**-log_condition, 5) * (np.arange(5) < rank)
    step = apply(p, (with_spectrum(values, 5, 7, seed) * 10**log_scale).astype(np.float32))
    assert np.isfinite(step).all()
    assert np.linalg.norm(step) <= math.sqrt(5) * (1 + 1e-5)


@each_p
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_ends_of_every_format_are_finite(p, dtype):
    limits, signs = jnp.finfo(dtype), np.sign(gaussian(5, 7, seed=1))
    sizes = [float(limits.max), float(limits.smallest_normal), float(limits.smallest_subnormal)]
    batch = np.stack([size * signs for size in sizes] + [np.full((5, 7), sizes[0])])
    steps = compiled(p)(jnp.asarray(batch, dtype))
    assert steps.dtype == dtype
    norms = np.linalg.norm(np.asarray(steps, np.float64), axis=(1, 2))
    np.testing.assert_allclose(norms, [math.sqrt(5)] * 3 + [1], rtol=2e-2)


# Batches and errors


@each_p
def test_vmap_and_jit_change_nothing(p):
    batch = jnp.asarray(gaussian(3, 5, 7), jnp.float32)
    together, direct = compiled(p)(batch), muon_jax.steepest_descent(p)(batch)
    mapped = jax.vmap(muon_jax.steepest_descent(p))(batch[:, None])[:, 0]
    np.testing.assert_allclose(direct, together, atol=1e-5)
    np.testing.assert_allclose(mapped, together, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_axes_pass_through(shape):
    assert muon_jax.steepest_descent(4)(jnp.zeros(shape)).shape == shape


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
def test_other_numbers_are_refused_in_words(dtype):
    named = f"muon_jax.steepest_descent: the matrices are {jnp.dtype(dtype).name}"
    with pytest.raises(TypeError, match=named):
        muon_jax.steepest_descent(4)(jnp.ones((1, 2, 2), dtype))


@pytest.mark.parametrize(
    ("p", "kind"),
    [
        *((p, ValueError) for p in (0.99, -math.inf, math.nan)),
        *((p, TypeError) for p in ("4", True, None)),
    ],
)
def test_what_is_no_norm_is_refused(p, kind):
    with pytest.raises(kind) as caught:
        muon_jax.steepest_descent(p)
    assert str(caught.value).startswith(f"muon_jax.steepest_descent(p={p!r}): ")


def test_equal_norms_are_equal_values():
    assert muon_jax.steepest_descent(4) == muon_jax.steepest_descent(np.float32(4.0))
    assert len({muon_jax.steepest_descent(4), muon_jax.steepest_descent(4.0)}) == 1
