"""muon equals a chain of its parts, and every part of the fallback can be replaced."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian

import muon_jax
from muon_jax import recipes

PARAMS = {
    "embed": {"embedding": jnp.asarray(gaussian(8, 4))},
    "dense": {"kernel": jnp.asarray(gaussian(4, 6)), "bias": jnp.asarray(gaussian(6))},
    "head": {"kernel": jnp.asarray(gaussian(4, 8))},
}

LAST_BIT = 1.2e-7  # for float32 weights of order one, which two programs may round differently
ADAMW = functools.partial(optax.adamw, b2=0.95, nesterov=True)


def run(tx: optax.GradientTransformation, steps: int = 3):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params


RATE = 2.0**-5  # a power of two, so the order of factors does not matter


def test_equals_the_chain_by_hand():
    by_hand = optax.multi_transform(
        {
            "muon": optax.chain(
                muon_jax.scale_by_muon(axes=muon_jax.matrix_axes(PARAMS)),
                optax.add_decayed_weights(0.1),
                optax.scale_by_learning_rate(RATE),
            ),
            "table": ADAMW(20 * RATE, weight_decay=0.0),
            "head": ADAMW(5 * RATE, weight_decay=0.0),
            "vectors": ADAMW(2.5 * RATE, weight_decay=0.0),
        },
        {
            "embed": {"embedding": "table"},
            "dense": {"kernel": "muon", "bias": "vectors"},
            "head": {"kernel": "head"},
        },
    )
    ours = run(muon_jax.muon(RATE, weight_decay=0.1))
    chex.assert_trees_all_close(ours, run(by_hand), rtol=1e-6, atol=LAST_BIT)


@pytest.mark.parametrize(
    "options",
    [{"scale": "none"}, {"scale": muon_jax.hidden_size(8)}, {"fallback_learning_rate": 0.1}],
    ids=["none", "function", "rate given"],
)
def test_adamw_has_one_rate_with_other_scales_or_a_rate_given(options):
    trained = run(muon_jax.muon(0.1, **options))
    alone = run(ADAMW(0.1, weight_decay=0.0))
    chex.assert_trees_all_close(without_muon(trained), without_muon(alone), rtol=1e-5)


@pytest.mark.parametrize("scale", ["keller", "spectral"])
def test_scales_of_order_one_leave_vectors_the_rate_of_the_matrices(scale):
    trained = run(muon_jax.muon(0.1, scale=scale))
    for name, factor in (("embed", 8), ("head", 2)):
        alone = run(ADAMW(factor * 0.1, weight_decay=0.0))
        chex.assert_trees_all_close(trained[name], alone[name], rtol=1e-5)
    alone = run(ADAMW(0.1, weight_decay=0.0))
    np.testing.assert_allclose(trained["dense"]["bias"], alone["dense"]["bias"], rtol=1e-5)


def test_a_rule_of_ones_own_gives_a_table_the_rate_of_vectors():
    trained = run(muon_jax.muon(0.1, rules=[muon_jax.Rule("head/kernel", "adamw")]))
    alone = run(ADAMW(2.5 * 0.1, weight_decay=0.0))
    np.testing.assert_allclose(trained["head"]["kernel"], alone["head"]["kernel"], rtol=1e-5)


def test_traced_tables_have_the_rate_that_they_have_by_name():
    def loss(params, tokens):
        x = params["embed"]["embedding"][tokens] @ params["dense"]["kernel"]
        logits = (x + params["dense"]["bias"][None])[:, :4] @ params["head"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    axes = muon_jax.trace_axes(loss, PARAMS, jnp.arange(3))
    chex.assert_trees_all_equal(run(muon_jax.muon(0.1, axes=axes)), run(muon_jax.muon(0.1)))


def test_moonlight_has_one_rate_and_one_decay():
    ours = run(recipes.moonlight(0.1, weight_decay=0.2))
    alone = run(ADAMW(0.1, weight_decay=0.2, nesterov=False))
    chex.assert_trees_all_close(without_muon(ours), without_muon(alone), rtol=1e-5)


def test_the_rate_of_a_recipe_may_be_injected():
    keller = functools.partial(recipes.keller, adam_learning_rate=0.01, dtype="float32")
    injected = optax.inject_hyperparams(lambda rate: keller(rate))(rate=0.02)
    chex.assert_trees_all_close(run(injected), run(keller(0.02)), atol=LAST_BIT)


def test_moonlight_takes_another_fallback():
    tx = recipes.moonlight(3e-2, fallback=optax.sgd(0.1))
    plain = muon_jax.muon(
        3e-2,
        momentum=0.95,
        weight_decay=0.1,
        orthogonalizer=muon_jax.newton_schulz(
            "keller", dtype="bfloat16", normalization="frobenius"
        ),
        fallback=optax.sgd(0.1),
    )
    chex.assert_trees_all_equal(run(tx), run(plain))


def without_muon(params):
    """Returns the parameters without the one matrix that Muon trains."""
    return {key: value for key, value in params.items() if key != "dense"} | {
        "bias": params["dense"]["bias"]
    }


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    ("options", "alone"),
    [
        ({"fallback_learning_rate": 0.1}, ADAMW(0.1, weight_decay=0.0)),
        (
            {
                "fallback_learning_rate": optax.linear_schedule(0.3, 0.0, 5),
                "weight_decay_mask": True,
            },
            ADAMW(optax.linear_schedule(0.3, 0.0, 5), weight_decay=0.2),
        ),
        (
            {"fallback_learning_rate": 0.1, "weight_decay_mask": True},
            ADAMW(0.1, weight_decay=0.2),
        ),
        (
            {"fallback_learning_rate": 0.1, "weight_decay_mask": matrices},
            ADAMW(0.1, weight_decay=0.2, mask=matrices),
        ),
        (
            {"fallback_learning_rate": 0.1, "nesterov": False},
            ADAMW(0.1, weight_decay=0.0, nesterov=False),
        ),
        (
            {"fallback": muon_jax.adamw(0.1, b1=0.8, b2=0.999, eps=1e-4, nesterov=False)},
            optax.adamw(0.1, b1=0.8, b2=0.999, eps=1e-4, weight_decay=0.0),
        ),
        (
            {"fallback": muon_jax.adamw(0.1, weight_decay=0.3, weight_decay_mask=matrices)},
            ADAMW(0.1, weight_decay=0.3, mask=matrices),
        ),
        ({"fallback": optax.lion(0.05)}, optax.lion(0.05)),
        (
            {"fallback": muon_jax.momentum_rms(0.05, weight_decay=0.1)},
            muon_jax.momentum_rms(0.05, weight_decay=0.1),
        ),
    ],
    ids=[
        *("rate", "schedule", "decay", "mask", "plain", "adamw", "masked adamw"),
        *("lion", "momentum_rms"),
    ],
)
def test_the_fallback_is_what_it_would_be_alone(options, alone):
    together = run(muon_jax.muon(0.1, weight_decay=0.2, **options))
    chex.assert_trees_all_close(without_muon(together), without_muon(run(alone)), rtol=1e-5)


def test_the_default_fallback_is_the_preset():
    rate = 0.1
    by_default = run(muon_jax.muon(rate, fallback_learning_rate=rate))
    chex.assert_trees_all_equal(by_default, run(muon_jax.muon(rate, fallback=muon_jax.adamw(rate))))


def test_one_mask_for_the_whole_tree_as_in_optax_contrib_muon():
    """A bias with False does not decay, and a table with True does."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = muon_jax.muon(
        1.0, weight_decay=0.25, weight_decay_mask=matrices, fallback_learning_rate=1.0
    )
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    expected = jax.tree.map(lambda leaf: -0.25 * leaf * (leaf.ndim > 1), PARAMS)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


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


def test_a_mask_sees_the_whole_tree():
    seen = []

    def mask(params):
        seen.append(jax.tree.structure(params))
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    for function in (mask, jax.tree_util.Partial(mask)):
        tx = muon_jax.muon(0.1, weight_decay_mask=function)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert set(seen) == {jax.tree.structure(PARAMS)}


def test_labels_of_ones_own_go_to_ones_own_transformations():
    frozen = muon_jax.Rule("head/kernel", "frozen")
    tx = muon_jax.muon(0.1, rules=[frozen], transforms={"frozen": optax.set_to_zero()})
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


@pytest.mark.parametrize("max_norm", [1e-12, 1e-6, 1.0])
def test_clipping_never_changes_the_size_of_a_step(max_norm):
    """Over steps it turns the average towards small gradients, and AdamW's eps may stop the rest.

    An orthogonal (4, 6) update has 4 singular values of 0.2·√6 before the learning rate.
    """
    tx = optax.chain(
        optax.clip_by_global_norm(max_norm),
        muon_jax.muon(0.1, weight_decay=0.0, orthogonalizer=muon_jax.polar_by_svd()),
    )
    params = PARAMS["dense"]
    state = tx.init(params)
    for step, size in enumerate([1.0, 1e3, 1e-3]):
        gradient = jax.tree.map(
            lambda leaf, step=step, size=size: size * jnp.sin(leaf + step), params
        )
        updates, state = tx.update(gradient, state, params)
        norm = np.linalg.norm(updates["kernel"])
        np.testing.assert_allclose(norm, 0.1 * 0.2 * np.sqrt(6) * np.sqrt(4), rtol=1e-5)
        stalls = np.abs(updates["bias"]).max() < 1e-3 * 0.1
        assert stalls == (max_norm == 1e-12)


FROZEN = {"transforms": {"frozen": optax.set_to_zero()}}
AS_MATRIX = muon_jax.Rule("embed/embedding", muon_jax.MatrixAxes(rows=0, cols=1))
OTHER_SETTINGS = {
    # name: (parameter, its new shape, new settings, the differences that the error lists)
    "Muon's width": (
        "dense/kernel",
        (4, 9),
        {},
        ["'muon/0/mu/dense/kernel' has shape (4, 6) in the state and shape (4, 9) now"],
    ),
    "AdamW's width": (
        "embed/embedding",
        (9, 4),
        {},
        ["'adamw/0/mu/embed/embedding' has shape (8, 4) in the state and shape (9, 4) now"],
    ),
    "a width that would broadcast": (
        "dense/bias",
        (1,),
        {},
        ["'adamw/0/nu/dense/bias' has shape (6,) in the state and shape (1,) now"],
    ),
    "from AdamW to Muon": (
        "embed/embedding",
        (8, 4),
        {"rules": [AS_MATRIX]},
        [
            "'adamw/0/mu/embed/embedding' has shape (8, 4) in the state and nothing now",
            "'muon/0/mu/embed/embedding' has nothing in the state and shape (8, 4) now",
        ],
    ),
    "from Muon to AdamW": (
        "dense/kernel",
        (4, 6),
        {"rules": [muon_jax.Rule("dense/kernel", "adamw")]},
        ["'muon/0/mu/dense/kernel' has shape (4, 6) in the state and nothing now"],
    ),
    "from Muon to a new label": (
        "dense/kernel",
        (4, 6),
        {"rules": [muon_jax.Rule("dense/kernel", "frozen")], **FROZEN},
        [
            "'frozen' has nothing in the state and no array now",
            "'muon/0/mu/dense/kernel' has shape (4, 6) in the state and nothing now",
        ],
    ),
    "a new label": (
        "dense/kernel",
        (4, 6),
        FROZEN,
        ["'frozen' has nothing in the state and no array now"],
    ),
    "a schedule instead of a number": (
        "dense/kernel",
        (4, 6),
        {"learning_rate": optax.constant_schedule(0.1)},
        ["'muon/2/count' has nothing in the state and shape () now"],
    ),
}


@pytest.mark.parametrize(
    ("path", "shape", "settings", "differing"), OTHER_SETTINGS.values(), ids=OTHER_SETTINGS
)
def test_a_state_of_other_widths_or_settings_is_refused_by_its_paths(
    path, shape, settings, differing
):
    state = muon_jax.muon(0.1).init(PARAMS)
    layer, name = path.split("/")
    params = {**PARAMS, layer: {**PARAMS[layer], name: jnp.ones(shape)}}
    tx = muon_jax.muon(**{"learning_rate": 0.1, **settings})
    with pytest.raises(ValueError, match=r"^muon_jax\.muon: the state does not fit") as caught:
        tx.update(params, state, params)
    for line in differing:
        assert line in str(caught.value)
