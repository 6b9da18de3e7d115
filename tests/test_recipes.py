"""muon: equal to the chain by hand, with every part of the fallback replaceable."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian

import muon_jax

PARAMS = {
    "embed": {"embedding": jnp.asarray(gaussian(8, 4))},
    "dense": {"kernel": jnp.asarray(gaussian(4, 6)), "bias": jnp.asarray(gaussian(6))},
    "head": {"kernel": jnp.asarray(gaussian(4, 8))},
}


def run(tx: optax.GradientTransformation, steps: int = 3):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_equals_the_chain_by_hand():
    by_hand = optax.multi_transform(
        {
            "muon": optax.chain(
                muon_jax.scale_by_muon(axes=muon_jax.matrix_axes(PARAMS)),
                optax.add_decayed_weights(0.1),
                optax.scale_by_learning_rate(3e-2),
            ),
            "adamw": optax.adamw(3e-2, b2=0.95, weight_decay=0.1),
        },
        muon_jax.label_params,
    )
    chex.assert_trees_all_close(run(muon_jax.muon(3e-2, weight_decay=0.1)), run(by_hand))


def without_muon(params):
    """Leaves out the one matrix that Muon trains."""
    return {key: value for key, value in params.items() if key != "dense"} | {
        "bias": params["dense"]["bias"]
    }


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({}, optax.adamw(0.1, b2=0.95, weight_decay=0.2)),
        ({"fallback_learning_rate": 0.3}, optax.adamw(0.3, b2=0.95, weight_decay=0.2)),
        (
            {"fallback_learning_rate": optax.linear_schedule(0.3, 0.0, 5)},
            optax.adamw(optax.linear_schedule(0.3, 0.0, 5), b2=0.95, weight_decay=0.2),
        ),
        ({"fallback_weight_decay": 0.0}, optax.adamw(0.1, b2=0.95, weight_decay=0.0)),
        (
            {"fallback_weight_decay_mask": lambda p: jax.tree.map(lambda x: x.ndim > 1, p)},
            optax.adamw(
                0.1,
                b2=0.95,
                weight_decay=0.2,
                mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
            ),
        ),
        ({"fallback": optax.lion(0.05)}, optax.lion(0.05)),
        (
            {"fallback": muon_jax.momentum_rms(0.05, weight_decay=0.1)},
            muon_jax.momentum_rms(0.05, weight_decay=0.1),
        ),
    ],
    ids=["default", "rate", "schedule", "decay", "mask", "lion", "momentum_rms"],
)
def test_the_fallback_is_what_it_would_be_alone(options, alone):
    together = run(muon_jax.muon(0.1, weight_decay=0.2, **options))
    chex.assert_trees_all_close(without_muon(together), without_muon(run(alone)), rtol=1e-5)


def test_the_mask_of_muon_says_what_decays():
    decayed = run(muon_jax.muon(0.1, weight_decay=0.5), steps=1)
    spared = run(
        muon_jax.muon(
            0.1, weight_decay=0.5, weight_decay_mask=lambda p: jax.tree.map(lambda _: False, p)
        ),
        steps=1,
    )
    expected = spared["dense"]["kernel"] - 0.1 * 0.5 * PARAMS["dense"]["kernel"]
    np.testing.assert_allclose(decayed["dense"]["kernel"], expected, atol=1e-6)


def test_labels_of_ones_own_go_to_ones_own_transformations():
    frozen = muon_jax.Rule("head/kernel", "frozen")
    tx = muon_jax.muon(0.1, rules=[frozen], others={"frozen": optax.set_to_zero()})
    trained = run(tx)
    np.testing.assert_array_equal(trained["head"]["kernel"], PARAMS["head"]["kernel"])
    assert (trained["embed"]["embedding"] != PARAMS["embed"]["embedding"]).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_clipping_the_gradient_in_front_never_stalls_muon(size):
    """The polar factor ignores a scale, so a clipped gradient gives the full update."""
    gradient = {"kernel": size * jnp.asarray(gaussian(4, 6))}
    muon = muon_jax.muon(0.1, weight_decay=0.0)
    clipped = optax.chain(optax.clip_by_global_norm(1e-6), muon)
    plain, _ = muon.update(gradient, muon.init(gradient), gradient)
    small, _ = clipped.update(gradient, clipped.init(gradient), gradient)
    chex.assert_trees_all_close(plain, small, atol=1e-5)


def test_a_state_of_other_widths_is_refused_by_its_paths():
    tx = muon_jax.muon(0.1)
    wider = {**PARAMS, "dense": {**PARAMS["dense"], "kernel": jnp.ones((4, 9))}}
    with pytest.raises(ValueError, match=r"dense/kernel.*\(4, 6\) in the state.*\(4, 9\) now"):
        tx.update(wider, tx.init(PARAMS), wider)
