"""What every transformation of the library must do, whichever it is."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian

import muon_jax
from muon_jax import recipes


class Case(NamedTuple):
    make: Any  # from a learning rate or scale to a transformation
    params: Any


MATRICES = {"kernel": jnp.asarray(gaussian(6, 8)), "stack": jnp.asarray(gaussian(2, 4, 4, seed=1))}
MODEL = {
    "embed": {"embedding": jnp.asarray(gaussian(8, 4))},
    "dense": {"kernel": jnp.asarray(gaussian(4, 8)), "bias": jnp.asarray(gaussian(8))},
    "norm": {"scale": jnp.ones(4)},
}
AXES = muon_jax.MatrixAxes(rows=-2, cols=-1)

CASES = {
    "scale_by_muon": Case(lambda rate: muon_jax.scale_by_muon(momentum=rate, axes=AXES), MATRICES),
    "scale_by_momentum_rms": Case(lambda rate: muon_jax.momentum_rms(rate), MODEL),
    "muon": Case(lambda rate: muon_jax.muon(rate), MODEL),
    "recipes.optax": Case(lambda rate: recipes.optax(rate), MODEL),
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
RATE = 0.1

# Rounding in float32, 6e-8, times the slope of the default schedule at small singular values, 500.
ROUNDING = 1e-4


def gradients(params: Any, step: int = 0) -> Any:
    return jax.tree.map(lambda leaf: jnp.sin(leaf * (step + 2)), params)


def run(tx: optax.GradientTransformation, params: Any, steps: int = 3) -> Any:
    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for index in range(steps):
        params, state = step(params, state, gradients(params, index))
    return params


@each_case
def test_updates_have_structure_shapes_and_dtypes_of_the_gradients(case):
    tx = case.make(RATE)
    updates, _ = tx.update(gradients(case.params), tx.init(case.params), case.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, case.params)
    chex.assert_tree_all_finite(updates)


@each_case
def test_jit_changes_nothing(case):
    tx = case.make(RATE)
    state = tx.init(case.params)
    plain, _ = tx.update(gradients(case.params), state, case.params)
    jitted, _ = jax.jit(tx.update)(gradients(case.params), state, case.params)
    chex.assert_trees_all_close(plain, jitted, atol=ROUNDING)


@each_case
def test_the_second_step_does_not_compile_again(case):
    tx = case.make(RATE)
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(gradients(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, case.params)
    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert len(traces) == 1


@each_case
def test_scan_over_steps_equals_a_loop(case):
    tx = case.make(RATE)

    def step(carry, index):
        params, state = carry
        grad = jax.tree.map(lambda leaf: jnp.sin(leaf * (index + 2)), params)
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = case.params, tx.init(case.params)
    (scanned, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(3.0)))(start)
    chex.assert_trees_all_close(scanned, run(tx, case.params), atol=ROUNDING)


@each_case
def test_vmap_over_models_equals_a_loop(case):
    tx = case.make(RATE)
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), case.params)

    def one(params):
        updates, _ = tx.update(gradients(params), tx.init(params), params)
        return updates

    together = jax.vmap(one)(models)
    for index in range(2):
        alone = one(jax.tree.map(lambda leaf, index=index: leaf[index], models))
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], together), alone, atol=ROUNDING
        )


@each_case
def test_hyperparameters_may_be_injected(case):
    made = {"scale_by_muon": "momentum"}
    name = next(key for key, value in CASES.items() if value is case)
    argument = made.get(name, "learning_rate")
    factory = {
        "scale_by_muon": muon_jax.scale_by_muon,
        "scale_by_momentum_rms": muon_jax.momentum_rms,
        "muon": muon_jax.muon,
        "recipes.optax": recipes.optax,
    }[name]
    options = {"axes": AXES} if name == "scale_by_muon" else {}
    injected = optax.inject_hyperparams(factory)(**{argument: RATE}, **options)
    chex.assert_trees_all_close(
        run(injected, case.params), run(case.make(RATE), case.params), atol=ROUNDING
    )


@each_case
def test_a_constant_schedule_is_its_value(case):
    if case is CASES["scale_by_momentum_rms"]:
        scheduled = muon_jax.momentum_rms(optax.constant_schedule(RATE))
    else:
        scheduled = case.make(optax.constant_schedule(RATE))
    chex.assert_trees_all_close(
        run(scheduled, case.params), run(case.make(RATE), case.params), atol=ROUNDING
    )


@each_case
def test_gradients_accumulate_under_multi_steps(case):
    tx = optax.MultiSteps(case.make(RATE), every_k_schedule=2)
    state = tx.init(case.params)
    first, state = tx.update(gradients(case.params, 0), state, case.params)
    chex.assert_trees_all_equal(first, jax.tree.map(jnp.zeros_like, first))
    second, _ = tx.update(gradients(case.params, 1), state, case.params)
    mean = jax.tree.map(
        lambda a, b: (a + b) / 2, gradients(case.params, 0), gradients(case.params, 1)
    )
    inner = case.make(RATE)
    expected, _ = inner.update(mean, inner.init(case.params), case.params)
    chex.assert_trees_all_close(second, expected, atol=1e-4)


@each_case
def test_a_non_finite_gradient_is_skipped_by_apply_if_finite(case):
    tx = optax.apply_if_finite(case.make(RATE), max_consecutive_errors=5)
    state = tx.init(case.params)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, case.params)
    updates, after = jax.jit(tx.update)(broken, state, case.params)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, updates))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


@each_case
def test_masked_leaves_are_left_alone(case):
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, case.params)
    tx = optax.masked(case.make(RATE), mask)
    grads = gradients(case.params)
    updates, _ = tx.update(grads, tx.init(case.params), case.params)
    for keep, update, grad in zip(*map(jax.tree.leaves, (mask, updates, grads)), strict=True):
        assert keep or bool((update == grad).all())
        assert not keep or bool((update != grad).any())


@each_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_half_precision_and_finite(case, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), case.params)
    trained = run(case.make(RATE), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)
    chex.assert_tree_all_finite(trained)


@each_case
def test_none_leaves_stay_none(case):
    params = {**case.params, "absent": None}
    assert run(case.make(RATE), params, steps=1)["absent"] is None


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 9), (9, 1), (1, 1), (3, 0, 4)])
def test_degenerate_shapes(shape):
    params = {"kernel": jnp.ones(shape)}
    tx = muon_jax.scale_by_muon(axes=AXES, scale="none")
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["kernel"].shape == shape
    if params["kernel"].size:
        np.testing.assert_allclose(np.linalg.norm(updates["kernel"]), 1, atol=0.3)


def test_x64_is_kept():
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(gaussian(6, 8), jnp.float64)}
        tx = muon_jax.scale_by_muon(axes=AXES)
        updates, state = tx.update(params, tx.init(params), params)
        assert updates["kernel"].dtype == state.momentum["kernel"].dtype == jnp.float64


def test_update_works_where_transfers_are_forbidden():
    for case in CASES.values():
        tx = case.make(RATE)
        update = jax.jit(tx.update)
        state, grads = tx.init(case.params), gradients(case.params)
        update(grads, state, case.params)
        with jax.transfer_guard("disallow"):
            update(grads, state, case.params)


def test_no_tracer_leaks():
    with jax.checking_leaks():
        for case in CASES.values():
            run(case.make(RATE), case.params, steps=1)
