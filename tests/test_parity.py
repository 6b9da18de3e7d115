"""muon_jax against optax.contrib.muon, where the two should agree. Every difference is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian

import muon_jax

SHAPES = {"wide": (8, 24), "tall": (24, 8), "square": (16, 16)}


def gradient_tree(step: int):
    return {
        name: jnp.asarray(gaussian(*shape, seed=10 * step + index), jnp.float32)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def weights_after(tx: optax.GradientTransformation, steps: int):
    params = gradient_tree(99)
    state = tx.init(params)

    @jax.jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, gradient_tree(index))
    return params


PUBLISHED = muon_jax.newton_schulz("keller", normalization="frobenius")


@pytest.mark.parametrize(
    ("scale", "optax_options"),
    [
        ("keller", {"consistent_rms": None}),
        ("match_rms", {"consistent_rms": 0.2}),
    ],
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_twenty_steps_equal_those_of_optax(scale, optax_options, nesterov):
    """Without Nesterov the two are one method.

    Known difference: with Nesterov optax divides the average by 1 − μ^(t+1) and the gradient by
    1 − μ^t before it mixes them, muon_jax mixes them as they are. The ratio of the two divisors
    tends to one, so that the methods differ in the first steps only.
    """
    ours = optax.chain(
        muon_jax.scale_by_muon(
            momentum=0.5, nesterov=nesterov, orthogonalizer=PUBLISHED, scale=scale
        ),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.02),
    )
    theirs = optax.contrib.muon(
        0.02,
        beta=0.5,
        nesterov=nesterov,
        weight_decay=0.1,
        muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(0, 1),
        **optax_options,
    )
    ours, theirs = weights_after(ours, 20), weights_after(theirs, 20)
    moved = 0.02 * 20
    for name in SHAPES:
        tolerance = 5e-2 * moved if nesterov else 1e-4 * moved
        np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance)
