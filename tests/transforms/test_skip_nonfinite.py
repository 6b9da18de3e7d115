"""A skipped step leaves weights and state unchanged, to the last bit."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transforms import CASES, MODEL, ROUNDING, gradients, train

import muon_jax

SCHEDULE = optax.linear_schedule(0.1, 0.01, 5)
WRAPPED = {
    "scale_by_muon": CASES["scale_by_muon"].make(),
    "muon": muon_jax.muon(SCHEDULE, weight_decay=0.3),
    "muon_clip": muon_jax.muon_clip(SCHEDULE, threshold=0.1),
    "momentum_rms": muon_jax.momentum_rms(SCHEDULE),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(SCHEDULE)),
}
POISONS = [jnp.nan, jnp.inf, -jnp.inf]


def poisoned(tree, poison, leaf_index=-1):
    leaves, treedef = jax.tree.flatten(tree)
    leaves[leaf_index] = leaves[leaf_index].at[(0,) * leaves[leaf_index].ndim].set(poison)
    return treedef.unflatten(leaves)


@functools.cache
def setup(name):
    """Returns a compiled update, parameters, and the state after one ordinary step."""
    case = CASES.get(name, CASES["muon"])
    tx = muon_jax.skip_nonfinite(WRAPPED[name])
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    _, state = update(gradients(case.params), tx.init(case.params), case.params)
    return update, case.params, state


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("poison", POISONS)
def test_the_update_is_zero_and_the_state_unchanged_to_the_last_bit(name, poison):
    update, params, state = setup(name)
    for leaf_index in range(len(jax.tree.leaves(params))):
        updates, after = update(poisoned(gradients(params), poison, leaf_index), state, params)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_equal(after.inner_state, state.inner_state)
        assert after.skipped == 1


def test_around_accumulation_a_broken_micro_batch_is_left_out():
    accumulated = optax.MultiSteps(muon_jax.muon(SCHEDULE), 2).gradient_transformation()
    tx = muon_jax.skip_nonfinite(accumulated)
    update = jax.jit(tx.update)
    good = gradients(MODEL)

    def steps(*batches):
        updates, state = None, tx.init(MODEL)
        for batch in batches:
            updates, state = update(batch, state, MODEL)
        return updates

    chex.assert_trees_all_equal(steps(good, poisoned(good, jnp.nan), good), steps(good, good))


@pytest.mark.parametrize("name", WRAPPED)
def test_a_finite_step_is_that_of_what_it_wraps(name):
    """Up to rounding, because JAX 0.12 fuses the two programs differently, by 1.5e-6."""
    case = CASES.get(name, CASES["muon"])
    plain = train(optax.with_extra_args_support(WRAPPED[name]), case.params, case.extra_args)
    wrapped = muon_jax.skip_nonfinite(WRAPPED[name])
    skipping = train(wrapped, case.params, case.extra_args)
    chex.assert_trees_all_close(skipping, plain, atol=ROUNDING)


def test_scanned_training_goes_on_as_if_the_step_had_not_been():
    tx = muon_jax.skip_nonfinite(WRAPPED["muon"])
    good = [gradients(MODEL, step) for step in range(3)]
    broken = poisoned(good[0], jnp.inf)

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(sequence):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sequence)
        start = MODEL, tx.init(MODEL)
        (params, state), _ = jax.jit(lambda xs: jax.lax.scan(step, start, xs))(stacked)
        return params, state

    params, state = run([good[0], broken, good[1], broken, broken, good[2]])
    expected, expected_state = run(good)
    chex.assert_trees_all_close(params, expected, atol=1e-6)
    chex.assert_trees_all_close(state.inner_state, expected_state.inner_state, atol=1e-6)
    assert state.skipped == 3


def test_each_model_of_a_vmap_is_judged_by_itself():
    tx = muon_jax.skip_nonfinite(WRAPPED["muon"])
    both = jax.tree.map(
        lambda *pair: jnp.stack(pair), gradients(MODEL), poisoned(gradients(MODEL), jnp.nan)
    )
    update = jax.jit(jax.vmap(lambda grads: tx.update(grads, tx.init(MODEL), MODEL)))
    updates, state = update(both)
    assert state.skipped.tolist() == [0, 1]
    for leaf in jax.tree.leaves(updates):
        assert leaf[0].any()
        assert not leaf[1].any()


def test_it_holds_no_branch_and_calls_no_host():
    tx = muon_jax.skip_nonfinite(optax.adamw(0.1))
    program = str(jax.make_jaxpr(tx.update)(gradients(MODEL), tx.init(MODEL), MODEL))
    assert "is_finite" in program
    assert "cond[" not in program
    assert "callback" not in program


def test_debug_nans_does_not_stop_a_skipped_step():
    tx = muon_jax.skip_nonfinite(optax.adamw(0.1))
    broken, state = poisoned(gradients(MODEL), jnp.nan), tx.init(MODEL)
    with jax.debug_nans(True):
        updates, _ = tx.update(broken, state, MODEL)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["muon", "muon_clip"])
def test_around_a_whole_optimizer_everything_pauses(name):
    case = CASES[name]
    tx = muon_jax.skip_nonfinite(case.make())
    broken = poisoned(gradients(case.params), jnp.inf)
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    updates, state = update(broken, tx.init(case.params), case.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    assert state.skipped == 1


def test_without_it_a_broken_matrix_is_loud_and_the_others_are_not():
    update = jax.jit(WRAPPED["muon"].update)
    broken = {**gradients(MODEL), "dense": poisoned(gradients(MODEL)["dense"], jnp.inf)}
    updates, _ = update(broken, WRAPPED["muon"].init(MODEL), MODEL)
    assert np.isnan(updates["dense"]["kernel"]).all()
    chex.assert_tree_all_finite((updates["embed"], updates["norm"], updates["dense"]["bias"]))


def test_the_count_of_skips_does_not_wrap_around():
    tx = muon_jax.skip_nonfinite(optax.identity())
    most = jnp.array(jnp.iinfo(jnp.int32).max)
    grads = {"bias": jnp.array([jnp.nan])}
    _, state = tx.update(grads, tx.init(grads)._replace(skipped=most))
    assert state.skipped == most
