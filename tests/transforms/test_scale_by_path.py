"""Learning-rate multipliers: the whole step of a leaf, times a number, whoever takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian

from muon_jax.explain._explain import explain
from muon_jax.optimizers._muon import muon, muon_clip
from muon_jax.routing._rule import Rule
from muon_jax.transforms._scale_by_path import multipliers_of

PARAMS = {
    "embed": {"embedding": jnp.asarray(gaussian(8, 4))},
    "attn": {
        name: {"kernel": jnp.asarray(gaussian(4, 2, 3, seed=seed))}
        for seed, name in enumerate(["query", "key"])
    },
    "dense": {"kernel": jnp.asarray(gaussian(4, 6)), "bias": jnp.asarray(gaussian(6))},
}
FACTORS = {"*/embedding": 0.1, "*/query/*": 3.0, "dense.*": 0.0}
EXPECTED = {
    "embed": {"embedding": 0.1},
    "attn": {"query": {"kernel": 3.0}, "key": {"kernel": 1.0}},
    "dense": {"kernel": 0.0, "bias": 0.0},
}


def first_step(tx, params=PARAMS, **extra_args):
    gradients = jax.tree.map(jnp.sin, params)
    return tx.update(gradients, tx.init(params), params, **extra_args)[0]


def test_the_first_pattern_that_fits_wins_and_the_others_have_one():
    assert multipliers_of(PARAMS, FACTORS, call="muon") == EXPECTED
    over = multipliers_of(PARAMS, {"*/embedding": 0.1, "*": 0.5}, call="muon")
    assert jax.tree.leaves(over) == [0.5, 0.5, 0.5, 0.5, 0.1]


@pytest.mark.parametrize("options", [{}, {"fallback": optax.lion(0.1, weight_decay=0.3)}])
def test_the_whole_step_is_multiplied_with_its_decay(options):
    one_rate = {} if options else {"fallback_learning_rate": 0.1, "fallback_weight_decay": 0.5}
    options = {"learning_rate": 0.1, "weight_decay": 0.5, **one_rate, **options}
    plain = first_step(muon(**options))
    scaled = first_step(muon(**options, learning_rate_multipliers=FACTORS))
    jax.tree.map(
        lambda step, factor, got: np.testing.assert_allclose(got, factor * step, rtol=1e-6),
        plain,
        EXPECTED,
        scaled,
    )


def test_a_multiplier_stands_for_the_default_factor_of_a_table():
    by_default, one_rate = muon(0.1), muon(0.1, fallback_learning_rate=0.1)
    ten, one = first_step(by_default)["embed"], first_step(one_rate)["embed"]
    np.testing.assert_allclose(ten["embedding"], 10 * one["embedding"], rtol=1e-6)
    given = first_step(muon(0.1, learning_rate_multipliers={"embed/*": 1.0}))
    np.testing.assert_array_equal(given["embed"]["embedding"], one["embedding"])


@pytest.mark.parametrize(("pattern", "leaf"), [("dense/kernel", "kernel"), ("dense/bias", "bias")])
def test_a_multiplier_is_another_learning_rate(pattern, leaf):
    """Over several steps, for a leaf of Muon's and one of AdamW's."""

    def run(tx):
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.sin, PARAMS), state, params)
            params = optax.apply_updates(params, updates)
        return params["dense"][leaf]

    by_pattern = run(muon(0.1, learning_rate_multipliers={pattern: 0.25}))
    np.testing.assert_allclose(by_pattern, run(muon(0.025)), atol=1e-6)


def test_the_state_is_the_same_with_and_without():
    """So that a run may go on with other multipliers."""
    plain = muon(0.1).init(PARAMS)
    updates, state = muon(0.1, learning_rate_multipliers=FACTORS).update(PARAMS, plain, PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    assert not np.asarray(updates["dense"]["kernel"]).any()


def test_half_precision_stays_half_precision():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    updates = first_step(muon(0.1, learning_rate_multipliers={"*": np.float64(0.5)}), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_clipping_logits_sees_the_multiplied_step():
    maxima = {"attn": np.array([400.0, 20.0])}
    clipped = first_step(muon_clip(0.1, learning_rate_multipliers=FACTORS), max_logits=maxima)
    unclipped = first_step(muon(0.1, learning_rate_multipliers=FACTORS))
    for name in ("query", "key"):
        after = PARAMS["attn"][name]["kernel"] + unclipped["attn"][name]["kernel"]
        expected = after * np.array([[[0.5], [1.0]]]) - PARAMS["attn"][name]["kernel"]
        np.testing.assert_allclose(clipped["attn"][name]["kernel"], expected, atol=1e-6)


def test_a_pattern_may_mean_what_a_mask_hides():
    tx = optax.masked(
        muon(0.1, learning_rate_multipliers={"embed/*": 0.5}),
        lambda tree: jax.tree.map(lambda _: True, tree) | {"embed": {"embedding": False}},
    )
    params = {name: layer for name, layer in PARAMS.items() if name != "attn"}  # has three axes
    gradients = jax.tree.map(jnp.sin, params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    np.testing.assert_array_equal(
        updates["embed"]["embedding"], jnp.sin(PARAMS["embed"]["embedding"])
    )


def test_frozen_leaves_have_a_label_of_their_own():
    tx = muon(
        0.1,
        rules=[Rule("embed/*", "frozen")],
        others={"frozen": optax.set_to_zero()},
        learning_rate_multipliers={"*": 0.5},
    )
    updates = first_step(tx)
    assert not np.asarray(updates["embed"]["embedding"]).any()
    assert np.asarray(updates["dense"]["kernel"]).all()


def test_explain_shows_them_where_there_are_any():
    explanation = explain(PARAMS, learning_rate_multipliers=FACTORS)
    found = {leaf.path: leaf.learning_rate_multiplier for leaf in explanation.leaves}
    assert found["embed/embedding"] == 0.1
    assert found["attn/key/kernel"] == 1
    (row,) = [line for line in str(explanation).splitlines() if line.startswith("attn/query")]
    assert row.endswith("x 3")
    assert "learning rate" in str(explanation).splitlines()[0]
    assert "learning rate" not in str(explain(PARAMS["attn"]))


MISTAKES = {
    "typo": (
        {"*/embd/*": 0.1},
        ValueError,
        "muon_jax.muon: no parameter fits the pattern '*/embd/*' of learning_rate_multipliers. The "
        "nearest paths are 'embed/embedding', 'attn/key/kernel', 'attn/query/kernel'.",
    ),
    "order": (
        {"*": 0.5, "*/embedding": 0.1},
        ValueError,
        "muon_jax.muon: earlier patterns of learning_rate_multipliers take all that '*/embedding' "
        "fits: embed/embedding. Put it before them, since the first that fits wins.",
    ),
    "order of many": (
        {"*": 0.5, "{attn,dense}/*": 0.1},
        ValueError,
        "muon_jax.muon: earlier patterns of learning_rate_multipliers take all that "
        "'{attn,dense}/*' fits: attn/key/kernel, attn/query/kernel, dense/bias and 1 more. Put it "
        "before them, since the first that fits wins.",
    ),
    "negative": (
        {"*": -1.0},
        ValueError,
        "muon_jax.muon(learning_rate_multipliers['*']=-1.0): give a finite number of at least 0.",
    ),
    "not a number": (
        {"*": float("nan")},
        ValueError,
        "muon_jax.muon(learning_rate_multipliers['*']=nan): give a finite number of at least 0.",
    ),
    "schedule": (
        {"*": abs},
        TypeError,
        "muon_jax.muon(learning_rate_multipliers['*']=<built-in function abs>): give a number.",
    ),
    "pattern": (
        {"*/{a": 1.0},
        ValueError,
        "muon_jax.muon(learning_rate_multipliers='*/{a'): open and close every "
        "brace, as in {query,key}.",
    ),
    "no mapping": (
        0.1,
        TypeError,
        "muon_jax.muon(learning_rate_multipliers=0.1): give a mapping from patterns to numbers, "
        'such as {"*/embed/*": 0.1}.',
    ),
}


@pytest.mark.parametrize(("multipliers", "kind", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(multipliers, kind, message):
    with pytest.raises(kind) as caught:
        muon(0.1, learning_rate_multipliers=multipliers).init(PARAMS)
    assert str(caught.value) == message
