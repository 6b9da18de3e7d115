"""Recipes with sources in JAX or in papers; test_parity_torch has those in PyTorch."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_runs as run
from covering import covering
from matrices import polar
from recipe_runs import from_jax, to_jax, trained

import muon_jax
from muon_jax import recipes

START = run.weights()
FLOAT32 = 2**-24 * run.QUINTIC[0] ** 5  # as in test_parity_torch
NAMES = ("wide", "tall", "square", "stack", "vector")  # few, because optax compiles each step
PARAMS = to_jax({name: START[name] for name in NAMES})


def far(found: Any, expected: Any) -> float:
    """Returns the largest distance of two trained trees over all weights."""
    found, expected = from_jax(found), from_jax(expected)
    return max(run.distance(found[name], expected[name], START[name]) for name in expected)


def run_of_optax(**options: Any) -> Any:
    stacked = optax.contrib.MuonDimensionNumbers(1, 2)

    def numbers(params: Any) -> Any:
        plain = optax.contrib.MuonDimensionNumbers()
        by_rank = {1: None, 2: plain, 3: stacked}
        return jax.tree.map(lambda leaf: by_rank[leaf.ndim], params)

    tx = optax.contrib.muon(run.RATE, muon_weight_dimension_numbers=numbers, **options)
    return trained(tx, PARAMS)[0]


STACKED = muon_jax.Rule("experts/kernel", muon_jax.MatrixAxes(rows=1, cols=2))
OPTAX_OPTIONS = [
    {},
    {"nesterov": False, "weight_decay": run.DECAY},
    {"consistent_rms": 0.2, "beta": 0.5, "weight_decay": run.DECAY},
    {"adam_learning_rate": run.ADAM_RATE, "adam_weight_decay": run.DECAY},
]


@pytest.mark.parametrize(
    "options",
    covering(OPTAX_OPTIONS, fast=[OPTAX_OPTIONS[0], OPTAX_OPTIONS[2]]),
    ids=["default", "plain", "rms", "adam"],
)
def test_the_recipe_of_optax_takes_its_steps(options):
    ours, _ = trained(recipes.optax(run.RATE, rules=[STACKED], **options), PARAMS)
    assert far(ours, run_of_optax(**options)) < FLOAT32


def test_the_recipe_of_optax_takes_its_other_coefficients():
    dion = muon_jax.newton_schulz("you", normalization="frobenius")
    ours, _ = trained(recipes.optax(run.RATE, rules=[STACKED], orthogonalizer=dion), PARAMS)
    slopes = 4.0848 * 3.9505 * 3.7418 * 2.8769 * 2.8366
    assert far(ours, run_of_optax(ns_coeffs="dion")) < 2**-24 * slopes


def test_without_rules_the_recipe_of_optax_reads_arrays_by_their_rank():
    params = {"embed": {"embedding": jnp.ones((8, 4))}, "query": {"kernel": jnp.ones((4, 2, 2))}}
    ours = recipes.optax(0.1).init(params).inner_states["muon"].inner_state[0].mu
    theirs = optax.contrib.muon(0.1).init(params).inner_states["muon"].inner_state[0].mu
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


def test_the_nesterov_mix_of_optax_tends_to_that_of_muon():
    """The known difference of `muon`: optax corrects both parts of the mix for bias.

    At step t its gradient weighs 1 + μᵗ(1 − μ)/(1 − μᵗ) times as much. So one more step from the
    same state differs at first, and agrees after many steps.
    """
    weights, gradients, momentum = (
        to_jax({"wide": arrays["wide"]}) for arrays in (START, run.gradients(0), run.gradients(1))
    )
    jordan = muon_jax.newton_schulz("keller", normalization="frobenius")
    mine = muon_jax.muon(
        run.RATE, momentum=0.95, weight_decay=0.0, orthogonalizer=jordan, scale="keller"
    )

    def update(tx: optax.GradientTransformation, count: int) -> Any:
        state = optax.tree.set(tx.init(weights), count=jnp.asarray(count, jnp.int32))
        state = optax.tree.set(state, lambda path, _: "MuonState" in str(path), mu=momentum)
        return tx.update(gradients, state, weights)[0]["wide"]["kernel"]

    def difference(count: int) -> float:
        other = update(recipes.optax(run.RATE), count)
        return float(jnp.linalg.norm(update(mine, count) - other) / jnp.linalg.norm(other))

    assert difference(0) > 0.01
    assert difference(400) < 1e-5


OUT, QKV = KIMI = ("wide", "large")


def kimi_run(maxima: np.ndarray, threshold: float) -> dict[str, np.ndarray]:
    """Runs algorithm 1 of Kimi K2's report in float64, on two heads in a fused kernel."""
    weights = {name: START[name].astype(np.float64) for name in KIMI}
    buffers = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step, heads in enumerate(maxima):
        gradients = run.gradients(step)
        for name, weight in weights.items():
            buffers[name] = run.MOMENTUM * buffers[name] + gradients[name]
            update = 0.2 * np.sqrt(max(weight.shape)) * run.newton_schulz(buffers[name])
            weights[name] = weight - run.RATE * (update + run.DECAY * weight)
        for head, logit in enumerate(heads):
            if logit > threshold:
                of_heads = weights[QKV].reshape(3, 2, 12, -1)  # query, key, value by head
                of_heads[:2, head] *= np.sqrt(threshold / logit)
    return weights


def test_the_recipe_of_kimi_k2_is_its_algorithm():
    maxima = 100 * np.exp(0.3 * np.random.default_rng(0).normal(size=(run.STEPS, 2)))
    thirds = muon_jax.MatrixAxes(rows=0, cols=1, split=3)
    query, key = (muon_jax.QKPart(QKV, thirds, part) for part in (0, 1))
    target = muon_jax.QKTarget(query=query, key=key)
    tx = recipes.kimi_k2(
        run.RATE, weight_decay=run.DECAY, targets={"attn": target}, dtype="float32"
    )
    params = {"attn": to_jax({name: START[name] for name in KIMI})}
    state = tx.init(params)
    step = jax.jit(tx.update)
    for index, heads in enumerate(maxima):
        gradients = run.gradients(index)
        gradients = {"attn": to_jax({name: gradients[name] for name in KIMI})}
        logits = {"attn": jnp.asarray(heads, jnp.float32)}
        updates, state = step(gradients, state, params, max_logits=logits)
        params = optax.apply_updates(params, updates)
    expected = kimi_run(maxima, threshold=100.0)
    assert 0 < int(optax.tree.get(state, "clipped_heads")) < maxima.size
    found = from_jax(params["attn"])
    for name, weight in expected.items():
        assert run.distance(found[name], weight, START[name]) < FLOAT32


def coupled(matrix: np.ndarray) -> np.ndarray:
    """Returns (GᵀG)^(-1/2) by 15 coupled steps on the short side, in float64."""
    if matrix.shape[0] > matrix.shape[1]:
        return coupled(matrix.T).T
    bound = np.sqrt(np.linalg.norm(np.linalg.matrix_power(matrix @ matrix.T, 2)))
    root, inverse = matrix @ matrix.T / bound, np.eye(len(matrix))
    for _ in range(15):
        factor = (3 * np.eye(len(matrix)) - inverse @ root) / 2
        root, inverse = root @ factor, factor @ inverse
    return inverse @ matrix / np.sqrt(bound)


def procrustes_vector() -> np.ndarray:
    weight, average = START["vector"].astype(np.float64), np.zeros(run.SHAPES["vector"])
    for gradient in run.gradients_of("vector"):
        average = 0.9 * average + 0.1 * gradient
        update = average / np.sqrt(np.mean(average**2))
        weight = weight - run.RATE * (update + 0.01 * weight)
    return weight


@pytest.mark.parametrize(
    ("orthogonalizer", "solve"),
    [(muon_jax.polar_by_svd(), polar), (muon_jax.inverse_sqrt(), coupled)],
    ids=["svd", "coupled"],
)
def test_the_recipe_of_procrustes_is_the_sketch(orthogonalizer, solve):
    tx = recipes.procrustes(run.RATE, orthogonalizer=orthogonalizer)
    found = from_jax(trained(tx, PARAMS)[0])
    sketch = functools.partial(
        run.muon, factor=1.0, polar=solve, momentum=0.9, nesterov=False, decay=0.01
    )
    for name in ("wide", "tall", "square"):
        expected = sketch(START[name], run.gradients_of(name))
        assert run.distance(found[name], expected, START[name]) < FLOAT32
    assert run.distance(found["vector"], procrustes_vector(), START["vector"]) < FLOAT32


def test_a_recipe_passes_on_what_muon_takes():
    params = {"dense": {"kernel": jnp.ones((4, 8))}, "norm": {"scale": jnp.ones(4)}}
    frozen = {
        "rules": [muon_jax.Rule("*", "frozen")],
        "transforms": {"frozen": optax.set_to_zero()},
    }
    for recipe in (recipes.keller, recipes.moonlight, recipes.torch, recipes.procrustes):
        tx = recipe(**frozen)
        updates, _ = tx.update(params, tx.init(params), params)
        assert not any(map(jnp.any, jax.tree.leaves(updates)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: recipes.torch(adjust_lr_fn="rms"),
            "muon_jax.recipes.torch(adjust_lr_fn='rms'): choose one of 'original', "
            "'match_rms_adamw'.",
        ),
        (
            lambda: recipes.optax(0.1, beta=1.5),
            "muon_jax.recipes.optax(beta=1.5): give a number in [0, 1).",
        ),
        (
            lambda: recipes.optax(0.1, consistent_rms=-0.2),
            "muon_jax.recipes.optax(consistent_rms=-0.2): give a finite number of at least 0.",
        ),
    ],
)
def test_a_recipe_refuses_what_its_source_does_not_know(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
