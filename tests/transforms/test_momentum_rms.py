"""Momentum of unit RMS."""

import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian

import muon_jax


def test_follows_its_recurrence():
    tx = muon_jax.scale_by_momentum_rms(momentum=0.9)
    gradients = [jnp.asarray(gaussian(7, seed=i)) for i in range(4)]
    state, average = tx.init(gradients[0]), np.zeros(7)
    for gradient in gradients:
        update, state = tx.update(gradient, state)
        average = 0.9 * average + 0.1 * np.asarray(gradient, np.float64)
        np.testing.assert_allclose(update, average / np.sqrt(np.mean(average**2)), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_every_magnitude_has_unit_rms(size):
    gradient = jnp.asarray(gaussian(64) * size, jnp.float32)
    tx = muon_jax.scale_by_momentum_rms(eps=0.0)
    update, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(update))), 1, rtol=1e-5)


def test_eps_damps_what_is_far_below_it():
    gradient = jnp.full(4, 1e-12)
    tx = muon_jax.scale_by_momentum_rms(momentum=0.0, eps=1e-8)
    update, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(update, 1e-4, rtol=1e-3)


@pytest.mark.parametrize(("size", "norm"), [(4, 2.0), (100, 3.0)])
def test_the_norm_is_bounded_and_not_raised(size, norm):
    gradient = jnp.asarray(gaussian(size))
    tx = muon_jax.scale_by_momentum_rms(max_norm=3.0)
    update, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(np.linalg.norm(update), norm, rtol=1e-5)


def test_zero_and_empty_leaves_stay_as_they_are():
    gradients = {"zero": jnp.zeros(3), "empty": jnp.zeros((0, 2))}
    tx = muon_jax.scale_by_momentum_rms(eps=0.0, max_norm=1.0)
    updates, _ = tx.update(gradients, tx.init(gradients))
    assert not updates["zero"].any()
    assert updates["empty"].shape == (0, 2)


def test_the_recipe_subtracts_and_decays():
    params = {"scale": jnp.array([1.0, -1.0])}
    tx = muon_jax.momentum_rms(0.1, weight_decay=0.5, momentum=0.0)
    updates, _ = tx.update({"scale": jnp.array([2.0, 2.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["scale"], [-0.1 * 1.5, -0.1 * 0.5], rtol=1e-6)


def test_complex_leaves_have_unit_rms_too():
    gradient = jnp.array([1, 1j, -1, 2j])
    tx = muon_jax.scale_by_momentum_rms(eps=0.0)
    update, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(update, gradient / np.sqrt(7 / 4), rtol=1e-6)
