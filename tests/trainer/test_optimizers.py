"""The optimizers that the command line names, and learning-rate schedules."""

from dataclasses import replace
from functools import cache
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from muon_jax import newton_schulz
from trainer.optimizers import (
    OptimizerConfig,
    OptimizerName,
    learning_rate_schedule,
    make_optimizer,
)

GRADIENT = jax.random.normal(jax.random.key(0), (16, 32))

LOW_LOGITS = {"blocks/0/attention": jnp.ones(2)}  # nothing to clip


@pytest.fixture(scope="session")
def first_update(decoder):
    """Returns the first update of each parameter, and its gradient, for every optimizer."""
    parameters = nnx.state(decoder, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(2), 20))
    gradients = jax.tree.map(lambda leaf: well_conditioned(next(keys), leaf.shape), parameters)

    @cache
    def update_by(optimizer, **options):
        config = OptimizerConfig(
            optimizer, warmup_steps=0, weight_decay=0.0, gradient_clip=1.0, **options
        )
        transform = make_optimizer(config, 10)
        state = transform.init(parameters)
        given = {"max_logits": LOW_LOGITS} if optimizer == "muon-clip" else {}
        updates, _ = jax.jit(transform.update)(gradients, state, parameters, **given)
        return named(updates), named(gradients)

    return update_by


def well_conditioned(key, shape):
    """Returns a random gradient whose matrix has singular values from 0.1 to 1."""
    left, _, right = np.linalg.svd(matrix(jax.random.normal(key, shape)), full_matrices=False)
    return jnp.asarray((left * np.linspace(0.1, 1, len(right))) @ right).reshape(shape)


def matrix(leaf):
    """Returns a parameter of the tiny decoder as (inputs, outputs), or a vector as one row."""
    if leaf.shape == (2, 8, 16):
        return leaf.reshape(16, 16)
    return leaf.reshape(leaf.shape[0] if leaf.ndim > 1 else 1, -1)


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_every_optimizer_moves_every_parameter_downhill(first_update, optimizer):
    updates, gradients = first_update(optimizer)
    for name, update in updates.items():
        assert np.vdot(update, gradients[name]) < 0, name


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "optax-muon"])
def test_muon_evens_out_the_hidden_matrices_and_nothing_else(first_update, optimizer):
    updates, _ = first_update(optimizer)
    spread = {
        name: np.linalg.cond(matrix(update)) for name, update in updates.items() if update.ndim > 1
    }
    hidden = {name for name in spread if name.startswith("blocks/")}
    assert len(hidden) == 7
    for name, ratio in spread.items():
        assert (ratio < 2) == (name in hidden), name


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "optax-muon", "adamw"])
def test_the_rest_of_the_model_moves_at_a_rate_of_its_own(first_update, optimizer):
    alike, _ = first_update(optimizer, learning_rate=0.01)
    apart, _ = first_update(optimizer, learning_rate=0.01, fallback_learning_rate=0.03)
    for path, update in apart.items():
        factor = 1 if path.startswith("blocks") and "norm" not in path else 3
        np.testing.assert_allclose(update, factor * alike[path], rtol=1e-5, err_msg=path)


@pytest.mark.slow
def test_attention_moves_at_a_rate_of_its_own(first_update):
    alike, _ = first_update("muon")
    apart, _ = first_update("muon", attention_rate=1.5)
    for path, update in apart.items():
        factor = 1.5 if "/attention/" in path else 1
        np.testing.assert_allclose(update, factor * alike[path], rtol=1e-5, err_msg=path)
    assert any("/attention/" in path for path in apart)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "orthogonalizer"),
    [
        ("keller:7", newton_schulz("keller", steps=7)),
        ("jordan:3", newton_schulz("keller", steps=3, normalization="frobenius")),
    ],
)
def test_orthogonalizer_takes_the_steps_that_its_name_says(name, orthogonalizer):
    update = muon_update(OptimizerConfig(orthogonalizer=name, scale="none"))
    np.testing.assert_allclose(update, orthogonalizer(GRADIENT[None])[0], atol=1e-5)


def muon_update(config):
    """Returns the first step on one matrix, divided by minus the learning rate."""
    config = replace(config, warmup_steps=0, weight_decay=0.0, learning_rate=1.0)
    transform, params = make_optimizer(config, 10), {"gate": {"kernel": GRADIENT}}
    updates, _ = transform.update(params, transform.init(params), params)
    return -np.asarray(updates["gate"]["kernel"])


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.0)],
)
def test_learning_rate_rises_to_its_peak_and_falls(schedule, halfway, end):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule)
    rates = np.asarray(learning_rate_schedule(config, 1010)(jnp.arange(1010)))
    assert (rates > 0).all()
    assert (np.diff(rates[:11]) > 0).all()
    assert rates[10] == rates.max() == 2.0
    assert rates[510] == pytest.approx(2 * halfway)
    assert rates[-1] == pytest.approx(2 * end, abs=0.02)
    assert (np.diff(rates[10:]) <= 0).all()
