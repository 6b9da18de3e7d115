"""Factors by path multiply the update of a leaf, with any optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian

from muon_jax import Rule, clip_qk, muon, muon_clip, scale_by_path
from muon_jax.transforms._scale_by_path import by_leaf

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
    assert by_leaf(PARAMS, FACTORS) == EXPECTED
    over = by_leaf(PARAMS, {"*/embedding": 0.1, "*": 0.5})
    assert jax.tree.leaves(over) == [0.5, 0.5, 0.5, 0.5, 0.1]


def scaled(tx, factors=FACTORS):
    return optax.chain(tx, scale_by_path(factors))


@pytest.mark.parametrize("options", [{}, {"fallback": optax.lion(0.1, weight_decay=0.3)}])
def test_the_whole_step_is_multiplied_with_its_decay(options):
    plain = muon(0.1, weight_decay=0.5, weight_decay_mask=True, **options)
    jax.tree.map(
        lambda step, factor, got: np.testing.assert_allclose(got, factor * step, rtol=1e-6),
        first_step(plain),
        EXPECTED,
        first_step(scaled(plain)),
    )


def test_a_factor_comes_on_top_of_the_default_factor_of_a_table():
    twenty, one = muon(0.1), muon(0.1, fallback_learning_rate=0.1)
    left, right = (
        first_step(tx)["embed"]["embedding"] for tx in (scaled(twenty, {"embed/*": 0.05}), one)
    )
    np.testing.assert_allclose(left, right, rtol=1e-6)


@pytest.mark.parametrize(("pattern", "leaf"), [("dense/kernel", "kernel"), ("dense/bias", "bias")])
def test_a_factor_is_another_learning_rate(pattern, leaf):
    """Over several steps, for a leaf of Muon and a leaf of AdamW."""

    def run(tx):
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.sin, PARAMS), state, params)
            params = optax.apply_updates(params, updates)
        return params["dense"][leaf]

    by_pattern = run(scaled(muon(0.1), {pattern: 0.25}))
    np.testing.assert_allclose(by_pattern, run(muon(0.025)), atol=1e-6)


def test_it_has_no_state_so_that_a_run_may_go_on_with_other_factors():
    state = scaled(muon(0.1)).init(PARAMS)
    updates, after = scaled(muon(0.1), {"dense/*": 0.0}).update(PARAMS, state, PARAMS)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.leaves(scale_by_path(FACTORS).init(PARAMS)) == []
    assert not np.asarray(updates["dense"]["kernel"]).any()


def test_half_precision_stays_half_precision():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    updates = first_step(scaled(muon(0.1), {"*": np.float64(0.5)}), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_clipping_logits_behind_it_sees_the_multiplied_step():
    maxima = {"attn": np.array([400.0, 20.0])}
    clipped = first_step(optax.chain(scaled(muon(0.1)), clip_qk(100.0)), max_logits=maxima)
    unclipped = first_step(scaled(muon(0.1)))
    for name in ("query", "key"):
        after = PARAMS["attn"][name]["kernel"] + unclipped["attn"][name]["kernel"]
        expected = after * np.array([[[0.5], [1.0]]]) - PARAMS["attn"][name]["kernel"]
        np.testing.assert_allclose(clipped["attn"][name]["kernel"], expected, atol=1e-6)
    assert jax.tree.structure(muon_clip(0.1).init(PARAMS)) == jax.tree.structure(
        optax.chain(muon(0.1), clip_qk(100.0)).init(PARAMS)
    )


def test_a_pattern_may_mean_what_a_mask_hides():
    tx = optax.masked(
        scaled(muon(0.1), {"embed/*": 0.5}),
        lambda tree: jax.tree.map(lambda _: True, tree) | {"embed": {"embedding": False}},
    )
    params = {name: layer for name, layer in PARAMS.items() if name != "attn"}  # has three axes
    gradients = jax.tree.map(jnp.sin, params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    np.testing.assert_array_equal(
        updates["embed"]["embedding"], jnp.sin(PARAMS["embed"]["embedding"])
    )


def test_frozen_leaves_have_a_label_of_their_own():
    frozen = muon(
        0.1, rules=[Rule("embed/*", "frozen")], transforms={"frozen": optax.set_to_zero()}
    )
    updates = first_step(scaled(frozen, {"*": 0.5}))
    assert not np.asarray(updates["embed"]["embedding"]).any()
    assert np.asarray(updates["dense"]["kernel"]).all()


MISTAKES = {
    "typo": (
        {"*/embd/*": 0.1},
        ValueError,
        "muon_jax.scale_by_path: no parameter fits the pattern '*/embd/*' of factors. The "
        "nearest paths are 'embed/embedding', 'attn/key/kernel', 'attn/query/kernel'.",
    ),
    "order": (
        {"*": 0.5, "*/embedding": 0.1},
        ValueError,
        "muon_jax.scale_by_path: earlier patterns of factors take all that '*/embedding' "
        "fits: embed/embedding. Put it before them, since the first that fits wins.",
    ),
    "order of many": (
        {"*": 0.5, "{attn,dense}/*": 0.1},
        ValueError,
        "muon_jax.scale_by_path: earlier patterns of factors take all that "
        "'{attn,dense}/*' fits: attn/key/kernel, attn/query/kernel, dense/bias and 1 more. Put it "
        "before them, since the first that fits wins.",
    ),
    "negative": (
        {"*": -1.0},
        ValueError,
        "muon_jax.scale_by_path(factors['*']=-1.0): give a finite number of at least 0.",
    ),
    "not a number": (
        {"*": float("nan")},
        ValueError,
        "muon_jax.scale_by_path(factors['*']=nan): give a finite number of at least 0.",
    ),
    "schedule": (
        {"*": abs},
        TypeError,
        "muon_jax.scale_by_path(factors['*']=<built-in function abs>): give a number.",
    ),
    "pattern": (
        {"*/{a": 1.0},
        ValueError,
        "muon_jax.scale_by_path(factors='*/{a'): open and close every brace, as in {query,key}.",
    ),
    "no mapping": (
        0.1,
        TypeError,
        "muon_jax.scale_by_path(factors=0.1): give a mapping from patterns to numbers, "
        'such as {"*/embed/*": 0.1}.',
    ),
}


@pytest.mark.parametrize(("factors", "kind", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(factors, kind, message):
    with pytest.raises(kind) as caught:
        scale_by_path(factors).init(PARAMS)
    assert str(caught.value) == message
