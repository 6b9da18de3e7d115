"""Measures of spectra: laws, and comparison with NumPy's singular values."""

import re

import chex
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import gaussian

from muon_jax.diagnostics import (
    orthogonality_residual,
    singular_value_entropy,
    stable_rank,
    update_to_weight_rms,
)


def up_to_scale(matrices):
    return orthogonality_residual(matrices, up_to_scale=True)


SPECTRAL = [singular_value_entropy, stable_rank, up_to_scale]
ALL = [*SPECTRAL, orthogonality_residual]
each_scale_free = pytest.mark.parametrize("measure", SPECTRAL)
each_spectral = pytest.mark.parametrize("measure", ALL)
SHAPES = [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (1, 1)]
ROUNDING = 1e-5


def orthogonal(rows, cols, seed=0):
    left, _, right = np.linalg.svd(gaussian(rows, cols, seed=seed), full_matrices=False)
    return (left @ right).astype(np.float32)


def in_float64(matrix):
    """Computes the measures from NumPy's singular values, by definition."""
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    share = values**2 / (values**2).sum()
    return {
        singular_value_entropy: -(share * np.log(share)).sum() / np.log(len(values)),
        stable_rank: (values**2).sum() / values.max() ** 2,
        orthogonality_residual: np.linalg.norm(values**2 - 1) / np.sqrt(len(values)),
        up_to_scale: np.linalg.norm(len(values) * share - 1) / np.sqrt(len(values)),
    }


@each_spectral
@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 40)])
def test_the_measure_is_that_of_numpy(measure, shape):
    matrix = gaussian(*shape)
    np.testing.assert_allclose(measure(jnp.asarray(matrix)), in_float64(matrix)[measure], rtol=1e-5)


def test_the_residual_is_the_distance_of_the_gram_matrix_from_one():
    wide = gaussian(3, 7)
    gram = wide @ wide.T
    expected = np.linalg.norm(gram - np.eye(3)) / np.sqrt(3)
    np.testing.assert_allclose(orthogonality_residual(wide), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonal_matrix_is_the_most_even(shape):
    matrix = jnp.asarray(orthogonal(*shape))
    np.testing.assert_allclose(singular_value_entropy(matrix), 1, atol=ROUNDING)
    np.testing.assert_allclose(stable_rank(matrix), min(shape), rtol=ROUNDING)
    for residual in (orthogonality_residual, up_to_scale):
        np.testing.assert_allclose(residual(matrix), 0, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
def test_a_matrix_of_rank_one_is_the_least_even(shape):
    matrix = jnp.asarray(np.outer(gaussian(shape[0]), gaussian(shape[1], seed=1)))
    np.testing.assert_allclose(singular_value_entropy(matrix), 0, atol=ROUNDING)
    np.testing.assert_allclose(stable_rank(matrix), 1, rtol=ROUNDING)
    np.testing.assert_allclose(up_to_scale(matrix), np.sqrt(min(shape) - 1), rtol=ROUNDING)


@each_spectral
def test_rotations_and_transposition_change_nothing(measure):
    matrix = gaussian(3, 5)
    rotated = orthogonal(3, 3, seed=1) @ matrix @ orthogonal(5, 5, seed=2)
    for other in (rotated, matrix.T):
        np.testing.assert_allclose(measure(other), measure(matrix), rtol=1e-4)


@each_scale_free
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scale_changes_nothing_at_any_size_that_the_dtype_holds(measure, dtype):
    matrix = jnp.asarray(gaussian(3, 5), dtype)
    limits = jnp.finfo(dtype)
    for power in (limits.minexp + 10, -1, 3, limits.maxexp - 4):
        scaled = jnp.ldexp(matrix.astype(jnp.float32), power).astype(dtype)
        np.testing.assert_allclose(measure(scaled), measure(matrix), rtol=1e-4)


@given(arrays.arrays(np.float32, (2, 3, 4), elements=st.floats(-1e3, 1e3, width=32)))
def test_every_measure_stays_within_its_bounds(matrices):
    entropy, rank, residual = (np.asarray(measure(matrices)) for measure in SPECTRAL)
    zero = ~matrices.any((1, 2))
    assert ((entropy >= -ROUNDING) & (entropy <= 1 + ROUNDING)).all()
    assert ((rank >= np.where(zero, 0, 1)) & (rank <= np.where(zero, 0, 3 + ROUNDING))).all()
    assert ((residual >= 0) & (residual <= np.sqrt(2) + 1e-4)).all()


@each_spectral
def test_a_batch_is_a_loop_of_any_depth(measure):
    stack = gaussian(2, 3, 4, 5)
    alone = [[measure(stack[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(measure(stack), np.array(alone), rtol=ROUNDING)


@each_spectral
def test_a_broken_matrix_breaks_no_other(measure):
    stack = gaussian(3, 4, 4)
    whole = np.asarray(measure(stack))
    stack[1, 2, 2] = np.nan
    broken = np.asarray(measure(stack))
    assert np.isnan(broken[1])
    np.testing.assert_allclose(broken[[0, 2]], whole[[0, 2]], rtol=ROUNDING)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 0, 4), (2, 4, 0), (0, 3, 4)])
def test_zero_and_empty_matrices(shape):
    zero = jnp.zeros(shape)
    with jax.debug_nans(True):
        for measure, value in zip(ALL, (0, 0, 1, 1), strict=True):
            chex.assert_trees_all_equal(measure(zero), jnp.full(shape[0], value, jnp.float32))
        chex.assert_trees_all_equal(update_to_weight_rms(zero, zero), jnp.zeros(shape[0]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_measured_in_float32(dtype):
    matrix = jnp.asarray(gaussian(4, 6), dtype)
    for measure in ALL:
        assert measure(matrix).dtype == jnp.float32
        chex.assert_trees_all_equal(measure(matrix), measure(matrix.astype(jnp.float32)))
    assert update_to_weight_rms(matrix, matrix) == 1


def test_float64_stays():
    with jax.enable_x64(True):
        matrix = jnp.asarray(gaussian(4, 6), jnp.float64)
        for measure in ALL:
            assert measure(matrix).dtype == jnp.float64
            np.testing.assert_allclose(measure(matrix), in_float64(matrix)[measure], rtol=1e-12)


def test_the_ratio_is_that_of_root_mean_squares():
    update, weight = gaussian(2, 3, 4), gaussian(2, 3, 4, seed=1)
    expected = np.sqrt((update**2).mean((1, 2)) / (weight**2).mean((1, 2)))
    np.testing.assert_allclose(update_to_weight_rms(update, weight), expected, rtol=ROUNDING)


@pytest.mark.parametrize("power", [-100, 100])
def test_the_ratio_neither_overflows_nor_vanishes(power):
    update, weight = gaussian(3, 4), gaussian(3, 4, seed=1)
    scaled = update_to_weight_rms(np.ldexp(update, power), np.ldexp(weight, power))
    np.testing.assert_allclose(scaled, update_to_weight_rms(update, weight), rtol=ROUNDING)


def test_a_ratio_to_zero_weights_is_infinite():
    assert update_to_weight_rms(jnp.ones((2, 2)), jnp.zeros((2, 2))) == jnp.inf


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: stable_rank(jnp.ones(3)),
            ValueError,
            "stable_rank: an array of shape (3,) holds no matrix. Give at least two axes.",
        ),
        (
            lambda: update_to_weight_rms(jnp.ones((2, 2)), jnp.ones(3)),
            ValueError,
            "update_to_weight_rms: an array of shape (3,) holds no matrix. Give at least two axes.",
        ),
        (
            lambda: update_to_weight_rms(jnp.ones((2, 2)), jnp.ones((2, 3))),
            ValueError,
            "update_to_weight_rms: the updates have shape (2, 2) and the weights (2, 3). "
            "Give the update of these weights.",
        ),
    ],
)
def test_what_is_no_matrix_is_refused(call, kind, message):
    with pytest.raises(kind, match=f"^{re.escape(f'muon_jax.diagnostics.{message}')}$"):
        call()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("singular_value_entropy", singular_value_entropy),
        ("stable_rank", stable_rank),
        ("orthogonality_residual", orthogonality_residual),
        ("orthogonality_residual", up_to_scale),
        ("update_to_weight_rms", lambda whole: update_to_weight_rms(whole, jnp.ones((2, 2)))),
        ("update_to_weight_rms", lambda whole: update_to_weight_rms(jnp.ones((2, 2)), whole)),
    ],
)
def test_whole_numbers_are_refused(name, call):
    words = f"muon_jax.diagnostics.{name}: the matrices are int32. Give real ones."
    with pytest.raises(TypeError, match=f"^{re.escape(words)}$"):
        call(jnp.ones((2, 2), jnp.int32))
