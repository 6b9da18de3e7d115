"""Every transformation inside wrappers of Optax: injection, schedules, accumulation, masks."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from covering import covering
from flax import nnx
from matrices import gaussian
from transforms import (
    CASES,
    IN_FULL,
    ROUNDING,
    each_case_in_full,
    gradients,
    train,
    trained,
)

import muon_jax


def first_update(tx, case, grads=None):
    tx = optax.with_extra_args_support(tx)
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    grads = gradients(case.params) if grads is None else grads
    return update(grads, tx.init(case.params), case.params)


def bound(case):
    """Returns the transformation of a case, for wrappers that do not pass extra arguments."""
    tx = case.make()
    update = functools.partial(tx.update, **case.extra_args)
    return optax.GradientTransformation(tx.init, update)


@each_case_in_full
def test_hyperparameters_may_be_injected_and_then_scheduled(case):
    injected = optax.inject_hyperparams(case.factory)
    constant = optax.constant_schedule(0.1)
    for value in (0.1, constant):
        tx = injected(**{case.hyperparameter: value}, **case.arguments)
        result = train(tx, case.params, case.extra_args)
        chex.assert_trees_all_close(result, trained(case), atol=ROUNDING)


@each_case_in_full
def test_an_injected_hyperparameter_may_be_changed_by_hand(case):
    injected = optax.inject_hyperparams(case.factory)
    tx = injected(**{case.hyperparameter: 0.1}, **case.arguments)
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    state, grads = tx.init(case.params), gradients(case.params)
    before, state = update(grads, state, case.params)
    hyperparameters = state.hyperparams
    hyperparameters[case.hyperparameter] = jnp.full_like(hyperparameters[case.hyperparameter], 0.3)
    after, _ = update(grads, state, case.params)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, after)))
    assert update._cache_size() == 1


@pytest.mark.parametrize(
    "name", covering([name for name in CASES if CASES[name].takes_schedule], fast=IN_FULL)
)
def test_a_constant_schedule_is_its_value(name):
    scheduled = CASES[name].make(optax.constant_schedule(0.1))
    result = train(scheduled, CASES[name].params, CASES[name].extra_args)
    chex.assert_trees_all_close(result, trained(CASES[name]), atol=ROUNDING)


@each_case_in_full
def test_gradients_accumulate_under_multi_steps(case):
    tx = optax.MultiSteps(case.make(), every_k_schedule=2)
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    first, second = gradients(case.params, 0), gradients(case.params, 1)
    waiting, state = update(first, tx.init(case.params), case.params)
    chex.assert_trees_all_equal(waiting, jax.tree.map(jnp.zeros_like, waiting))
    updates, _ = update(second, state, case.params)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    expected, _ = first_update(case.make(), case, mean)
    chex.assert_trees_all_close(updates, expected, atol=ROUNDING)


@each_case_in_full
def test_a_non_finite_gradient_is_skipped_by_apply_if_finite(case):
    tx = optax.apply_if_finite(case.make(), max_consecutive_errors=5)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, case.params)
    updates, after = first_update(tx, case, broken)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, updates))
    chex.assert_trees_all_equal(after.inner_state, tx.init(case.params).inner_state)


@each_case_in_full
def test_masked_and_labelled_leaves_are_left_alone(case):
    params = {**case.params, "other": {"kernel": jnp.ones((3, 5))}}
    grads = gradients(params)
    mask = {key: key != "other" for key in params}
    labels = {key: "ours" if keep else "theirs" for key, keep in mask.items()}
    expected, _ = first_update(case.make(), case)
    wider = case._replace(params=params)
    for tx, theirs in (
        (optax.masked(case.make(), mask), grads["other"]),
        (
            optax.multi_transform({"ours": case.make(), "theirs": optax.scale(-2.0)}, labels),
            jax.tree.map(lambda leaf: -2.0 * leaf, grads["other"]),
        ),
    ):
        updates, _ = first_update(tx, wider, grads)
        chex.assert_trees_all_equal(updates.pop("other"), theirs)
        chex.assert_trees_all_close(updates, expected, atol=ROUNDING)


@each_case_in_full
def test_an_average_of_one_update_is_that_update(case):
    averaged, _ = first_update(optax.chain(case.make(), optax.ema(0.9)), case)
    expected, _ = first_update(case.make(), case)
    chex.assert_trees_all_close(averaged, expected, atol=ROUNDING)


@each_case_in_full
def test_lookahead_moves_the_slow_weights_half_of_the_way(case):
    tx = optax.lookahead(bound(case), sync_period=2, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(case.params)
    state, update, fast = tx.init(pair), jax.jit(tx.update), case.params
    alone, inner = bound(case), bound(case).init(fast)
    for step in range(2):
        grads = gradients(case.params, step)
        updates, state = update(grads, state, pair)
        pair = optax.apply_updates(pair, updates)
        expected, inner = jax.jit(alone.update)(grads, inner, fast)
        fast = optax.apply_updates(fast, expected)
    half = jax.tree.map(lambda slow, fast: (slow + fast) / 2, case.params, fast)
    chex.assert_trees_all_close(pair.slow, half, atol=ROUNDING)
    chex.assert_trees_all_close(pair.fast, half, atol=ROUNDING)


class Called(eqx.Module):
    """A callable model; trees of labels or masks of its class are callable too."""

    layer: dict[str, jax.Array]

    def __call__(self, x):
        return x @ self.layer["kernel"] + self.layer["bias"]


def mask(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: muon_jax.muon(0.1),
        lambda params: muon_jax.muon(0.1, weight_decay_mask=mask(params)),
        lambda params: muon_jax.muon(
            0.1, fallback=muon_jax.adamw(0.1, weight_decay=0.1, weight_decay_mask=mask(params))
        ),
        lambda params: muon_jax.recipes.optax(0.1, weight_decay_mask=mask(params)),
        lambda params: muon_jax.scale_by_muon(axes=muon_jax.matrix_axes(params)),
    ],
    ids=["muon", "mask", "fallback mask", "optax", "axes"],
)
def test_a_model_that_can_be_called_is_no_function(make):
    layer = {"kernel": jnp.asarray(gaussian(4, 6)), "bias": jnp.ones(6)}
    model, tree = Called(layer), {"layer": layer}
    updates, expected = (
        make(params).update(params, make(params).init(params), params)[0]
        for params in (model, tree)
    )
    chex.assert_trees_all_equal(updates.layer, expected["layer"])
    shown = [
        muon_jax.explain(each, muon_jax.muon(1.0, weight_decay_mask=mask(each))).leaves
        for each in (model, tree)
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("form", [lambda state: state, nnx.to_pure_dict, nnx.as_pure])
def test_nnx_hands_over_boxes_first_and_arrays_then(form):
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    params = form(nnx.state(model, nnx.Param))
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    by_hand = optax.multi_transform(
        {
            "muon": muon_jax.scale_by_muon(axes=muon_jax.matrix_axes(params)),
            "adamw": optax.scale(0.0),
        },
        muon_jax.label_params,
    )
    masked = muon_jax.muon(0.1, weight_decay_mask=mask)
    for tx in (by_hand, masked):
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        before = model.kernel[...]
        optimizer.update(model, nnx.grad(lambda model: model(jnp.ones((2, 4))).sum())(model))
        assert bool((before != model.kernel[...]).any())
