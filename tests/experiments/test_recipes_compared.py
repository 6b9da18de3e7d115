"""The comparison of recipes: it trains the trainer's model, and its best arm is the default."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from flax import nnx

from experiments.flat_decoder import init, loss
from experiments.recipe_arms import ARMS, make
from experiments.recipe_tables import report
from experiments.recipes import RecipeTrial, warmup_cosine
from trainer.language import next_token_loss
from trainer.models.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(width=64, layers=2, heads=2)
VOCABULARY = 16
WINDOWS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 9)).astype(np.int32)
CHOSEN = {"input": 20.0, "head": 5.0, "vector": 2.5, "input_decay": 0.0, "head_decay": 0.0}
CHOSEN |= {"weight_decay": 0.25}


@pytest.fixture(scope="module")
def params():
    drawn = init(CONFIG, VOCABULARY, seed=0)
    head = jax.random.normal(jax.random.key(1), drawn["head"]["kernel"].shape)
    return drawn | {"head": {"kernel": head}}  # zero at the start, so other gradients are zero


@pytest.mark.slow
def test_the_flat_decoder_is_the_decoder(params):
    module = Decoder(CONFIG, VOCABULARY, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, params)

    def theirs(state):
        return next_token_loss(nnx.merge(graph, state), WINDOWS)[0]

    expected, gradient = jax.jit(jax.value_and_grad(theirs))(state)
    flat = jax.jit(jax.value_and_grad(lambda params: loss(params, WINDOWS, heads=CONFIG.heads)))
    found, flat_gradient = flat(params)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    chex.assert_trees_all_close(flat_gradient, nnx.to_pure_dict(gradient), rtol=1e-4, atol=1e-5)


def three_steps(params, optimizer, precondition="none", **numbers):
    trial = RecipeTrial(optimizer, 0.01, **numbers)
    tx = make(optimizer, precondition, trial.numbers, warmup_cosine(warmup=1, steps=9))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize(
    ("arm", "precondition"),
    covering(
        [
            ("muon-outputs-heads-momentum-0.9", "none"),
            ("muon-outputs-heads-momentum-0.9", "second_moment"),
            ("muon-heads-whole", "soap_short"),
        ],
        fast=[("muon-outputs-heads-momentum-0.9", "second_moment")],
    ),
)
def test_the_default_and_the_recipes_are_the_arms_that_were_chosen(params, arm, precondition):
    default, chosen = (
        three_steps(params, "muon-default", precondition),
        three_steps(params, arm, precondition, **CHOSEN),
    )
    # One update is about 0.01; the arms multiply the same factors in another order.
    chex.assert_trees_all_close(default, chosen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "precondition"),
    covering(
        [*((name, "none") for name in ARMS), ("muon", "second_moment"), ("muon", "soap")],
        fast=[("adamw", "none"), ("muon", "none")],
    ),
)
def test_every_arm_moves_every_parameter(params, optimizer, precondition):
    moved = three_steps(params, optimizer, precondition)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).mean() > 0.9


def test_the_table_puts_the_peaks_of_an_arm_into_a_row():
    found = {RecipeTrial("adamw", rate): {"loss": 10 * rate, "error": 1.0} for rate in (0.2, 0.1)}
    found[RecipeTrial("adamw", 0.1, seed=1)] = {"loss": 1.5, "error": 1.0}
    row = report(found).splitlines()[-1]
    assert row == "| adamw | 1, 1, 1 | 1, 1, 0 | 0.1: 1.0000, 0.2: 2.0000 | 1.0000, 1.5000 |"
