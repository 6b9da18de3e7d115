"""Scales of orthogonal updates: the factor, and the size of the update."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian, polar

import muon_jax
from muon_jax.transforms._scale import scaler

SHAPES = [(64, 64), (16, 64), (64, 16), (1, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_orthogonal_matrix_has_the_rms_that_lemma_1_of_moonlight_says(shape):
    update = polar(gaussian(*shape))
    assert math.isclose(np.sqrt(np.mean(update**2)), 1 / math.sqrt(max(shape)), rel_tol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["match_rms", "update_norm"])
def test_two_scales_give_the_update_rms_of_adamw(scale, shape):
    update = jnp.asarray(polar(gaussian(*shape)), jnp.float32)[None]
    scaled = scaler(scale)(update)
    assert math.isclose(float(jnp.sqrt(jnp.mean(scaled**2))), 0.2, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("scale", "rows", "cols", "factor"),
    [
        ("none", 4, 16, 1.0),
        ("outputs", 4, 16, 0.8),
        ("outputs", 16, 4, 0.4),
        ("match_rms", 4, 16, 0.8),
        ("match_rms", 16, 4, 0.8),
        ("keller", 4, 16, 2.0),
        ("keller", 16, 4, 1.0),
        ("spectral", 4, 16, 2.0),
        ("spectral", 16, 4, 0.5),
        (lambda rows, cols: rows + cols, 4, 16, 20.0),
    ],
)
def test_shape_scales_follow_their_formula(scale, rows, cols, factor):
    scaled = scaler(scale)(jnp.ones((2, rows, cols)))
    np.testing.assert_allclose(scaled, factor, rtol=1e-6)


def test_hidden_size_is_one_factor_for_every_shape():
    scale = muon_jax.hidden_size(100)
    muon_jax.scale_by_muon(scale=scale)  # accepts any callable
    for shape in ((2, 4, 16), (1, 1, 1)):
        np.testing.assert_allclose(scaler(scale)(jnp.ones(shape)), 2.0, rtol=1e-6)


@pytest.mark.parametrize("scale", ["spectral", "update_norm"])
def test_a_matrix_without_entries_is_left_alone(scale):
    assert scaler(scale)(jnp.ones((1, 0, 4))).shape == (1, 0, 4)


def test_update_norm_measures_every_matrix_of_a_batch_by_itself():
    batch = jnp.asarray([[[1.0, 1.0]], [[3.0, 3.0]]])
    np.testing.assert_allclose(scaler("update_norm")(batch), 0.2, rtol=1e-6)


def test_update_norm_brings_a_rank_deficient_update_to_full_size():
    rank_one = jnp.zeros((1, 8, 8)).at[0, 0, 0].set(1.0)
    assert math.isclose(
        float(jnp.sqrt(jnp.mean(scaler("update_norm")(rank_one) ** 2))), 0.2, rel_tol=1e-5
    )
    assert not scaler("update_norm")(jnp.zeros((1, 8, 8))).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("scale", ["match_rms", "update_norm", lambda rows, cols: np.float32(2)])
def test_scaling_keeps_the_dtype(scale, dtype):
    assert scaler(scale)(jnp.ones((1, 4, 4), dtype)).dtype == dtype
