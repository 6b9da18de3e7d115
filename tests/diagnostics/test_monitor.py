"""`monitor` leaves updates unchanged, and costs nothing between measurements."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import covering
from matrices import gaussian

import muon_jax
from muon_jax import MatrixAxes
from muon_jax.diagnostics import (
    MonitorState,
    by_matrix,
    measure,
    monitor,
    orthogonality_residual,
    singular_value_entropy,
    stable_rank,
    update_to_weight_rms,
)
from muon_jax.diagnostics._hlo import _parse

MODEL = {
    "embed": {"embedding": gaussian(16, 4)},
    "attn": {"qkv": {"kernel": gaussian(4, 12, seed=1)}, "query": {"kernel": gaussian(4, 2, 2)}},
    "dense": {"kernel": gaussian(4, 8, seed=2), "bias": gaussian(8)},
}
MODEL = jax.tree.map(jnp.asarray, MODEL)
PATHS = ["attn/qkv/kernel", "attn/query/kernel", "dense/kernel"]
AXES = MatrixAxes(rows=-2, cols=-1)


def gradients(params, step=0):
    return jax.tree.map(lambda leaf: jnp.sin(leaf * (step + 2)), params)


def measurements(state):
    return optax.tree_utils.tree_get(state, "measurements")


def run(tx, params, steps):
    """Returns the updates and the state after each step."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, updates

    state, history = tx.init(params), []
    for index in range(steps):
        params, state, updates = step(params, state, gradients(params, index))
        history.append((updates, state))
    return history


def test_every_matrix_is_measured_under_its_view():
    found = by_matrix(stable_rank, MODEL)
    assert list(found) == PATHS
    parts = jnp.split(MODEL["attn"]["qkv"]["kernel"], 3, axis=1)
    chex.assert_trees_all_close(
        found,
        {
            "attn/qkv/kernel": jnp.stack([stable_rank(part) for part in parts]),
            "attn/query/kernel": stable_rank(MODEL["attn"]["query"]["kernel"].reshape(1, 4, 4)),
            "dense/kernel": stable_rank(MODEL["dense"]["kernel"][None]),
        },
        rtol=1e-6,
    )


@pytest.mark.slow
def test_unequal_parts_of_a_stack_come_part_by_part():
    stack = jnp.asarray(gaussian(2, 4, 7))
    found = by_matrix(stable_rank, {"w": stack}, axes=MatrixAxes(-2, -1, split=(4, 3)))
    expected = [*stable_rank(stack[..., :4]), *stable_rank(stack[..., 4:])]
    np.testing.assert_allclose(found["w"], expected, rtol=1e-6)


def test_a_step_is_measured_as_the_functions_measure():
    params, updates = {"w": jnp.asarray(gaussian(3, 5))}, {"w": jnp.asarray(gaussian(3, 5, seed=1))}
    (found,) = measure(updates, params, axes=AXES).values()
    alone = (
        singular_value_entropy(params["w"]),
        stable_rank(params["w"]),
        orthogonality_residual(updates["w"], up_to_scale=True),
        update_to_weight_rms(updates["w"], params["w"]),
    )
    chex.assert_trees_all_close(tuple(each[0] for each in found), alone, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: muon_jax.muon(0.1),
        pytest.param(lambda: optax.adamw(0.1), marks=pytest.mark.slow),
        lambda: optax.sgd(0.1, momentum=0.9),
    ],
    ids=["muon", "adamw", "sgd"],
)
def test_updates_pass_bit_for_bit(make):
    plain = [updates for updates, _ in run(make(), MODEL, 4)]
    watched = [updates for updates, _ in run(monitor(make(), every=2), MODEL, 4)]
    chex.assert_trees_all_equal(plain, watched)


def test_measurements_are_those_of_the_last_step_that_was_due():
    history = run(monitor(optax.sgd(0.1), every=3), MODEL, 8)
    states = [state for _, state in history]
    assert [int(state.measured_at) for state in states] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert [int(state.count) for state in states] == list(range(1, 9))
    for index in (1, 2, 4, 5, 7):
        chex.assert_trees_all_equal(measurements(states[index]), measurements(states[index - 1]))

    params = MODEL
    for index, (updates, state) in enumerate(history):
        if index % 3 == 0:
            chex.assert_trees_all_close(
                measurements(state), measure(updates, params), rtol=1e-4, atol=1e-6
            )
        params = optax.apply_updates(params, updates)


def test_before_the_first_step_nothing_is_measured():
    state = monitor(optax.sgd(0.1)).init(MODEL)
    assert isinstance(state, MonitorState)
    assert state.measured_at == -1
    assert list(state.measurements) == PATHS
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.measurements))


def test_around_muon_alone_updates_are_orthogonal_up_to_scale():
    exact = muon_jax.scale_by_muon(axes=AXES, orthogonalizer=muon_jax.polar_by_svd())
    params = {"w": jnp.asarray(gaussian(6, 8))}
    ((_, state),) = run(monitor(exact, axes=AXES), params, 1)
    np.testing.assert_allclose(measurements(state)["w"].update_residual, 0, atol=1e-5)


def decompositions(text, through_branches):
    """Counts the singular value decompositions in a program, with or without branches."""
    computations, entry = _parse(text)

    def count(name):
        total = 0
        for each in computations[name].values():
            total += each.operation == "custom-call" and "gesdd" in each.rest
            if each.operation != "conditional" or through_branches:
                total += sum(count(inner) for names in each.called.values() for inner in names)
        return total

    return count(entry)


def test_decompositions_stand_in_a_branch_only():
    tx = monitor(muon_jax.muon(0.1), every=100)
    text = jax.jit(tx.update).lower(MODEL, tx.init(MODEL), MODEL).compile().as_text()
    assert decompositions(text, through_branches=True) == 2 * len(PATHS)
    assert decompositions(text, through_branches=False) == 0


def test_a_program_that_measures_at_every_step_would_be_found_out():
    text = jax.jit(measure).lower(MODEL, MODEL).compile().as_text()
    assert decompositions(text, through_branches=False) == 2 * len(PATHS)


def test_scan_over_steps_equals_a_loop():
    tx = monitor(optax.sgd(0.1), every=2)

    def step(carry, index):
        params, state = carry
        updates, state = tx.update(gradients(params, index), state, params)
        return (optax.apply_updates(params, updates), state), None

    (_, state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(3.0)))(
        (MODEL, tx.init(MODEL))
    )
    chex.assert_trees_all_close(state, run(tx, MODEL, 3)[-1][1], rtol=1e-3, atol=1e-4)


def test_the_second_step_does_not_compile_again():
    tx = monitor(optax.sgd(0.1))
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, gradient, params):
        traces.append(1)
        return tx.update(gradient, state, params)[1]

    state = tx.init(MODEL)
    for index in range(3):
        state = step(state, gradients(MODEL, index), MODEL)
    assert len(traces) == 1


@pytest.mark.slow
def test_models_side_by_side_are_measured_each():
    tx = monitor(optax.sgd(0.1))
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf + 1]), MODEL)
    states = jax.vmap(lambda params: tx.update(params, tx.init(params), params)[1])(models)
    for index in range(2):
        params = jax.tree.map(lambda leaf, index=index: leaf[index], models)
        alone = tx.update(params, tx.init(params), params)[1]
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], states.measurements),
            alone.measurements,
            rtol=1e-3,
            atol=1e-4,
        )


def test_under_a_mask_hidden_leaves_are_not_measured():
    views = muon_jax.matrix_axes(MODEL)
    tx = optax.multi_transform(
        {"muon": monitor(muon_jax.scale_by_muon(axes=views), axes=views), "adamw": optax.adam(0.1)},
        muon_jax.label_params,
    )
    (_, state), *_ = run(tx, MODEL, 2)
    assert list(measurements(state)) == PATHS


def test_none_and_empty_leaves():
    params = {"absent": None, "empty": jnp.ones((0, 4)), "w": jnp.asarray(gaussian(2, 4))}
    ((updates, state),) = run(monitor(optax.sgd(0.1), axes=AXES), params, 1)
    assert updates["absent"] is None
    assert list(measurements(state)) == ["empty", "w"]
    chex.assert_tree_all_finite(measurements(state))


@pytest.mark.parametrize("dtype", covering([jnp.bfloat16, jnp.float16], fast=[jnp.float16]))
def test_half_precision_is_measured_in_float32(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), MODEL)
    *_, (updates, state) = run(monitor(optax.sgd(0.1), every=2), params, 3)
    chex.assert_trees_all_equal_dtypes(updates, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(measurements(state))} == {jnp.dtype("float32")}
    chex.assert_tree_all_finite(measurements(state))


def test_extra_arguments_reach_what_is_wrapped():
    params = {"attn": {name: {"kernel": jnp.ones((8, 2, 4))} for name in ("query", "key")}}
    tx = monitor(muon_jax.muon_clip(0.1))
    maxima = {"attn": jnp.array([400.0, 20.0])}
    _, state = tx.update(params, tx.init(params), params, max_logits=maxima)
    assert optax.tree_utils.tree_get(state, "clipped_heads") == 1


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: monitor(optax.sgd(0.1), every=0),
            ValueError,
            r"^muon_jax.diagnostics.monitor\(every=0\): give a whole number of at least 1.$",
        ),
        (
            lambda: monitor(0.1),
            TypeError,
            r"^muon_jax.diagnostics.monitor\(tx=0.1\): give a gradient transformation,",
        ),
        (
            lambda: monitor(optax.sgd(0.1)).update(
                MODEL, monitor(optax.sgd(0.1)).init(MODEL), None
            ),
            ValueError,
            "^muon_jax.diagnostics.monitor: params is missing",
        ),
        (
            lambda: monitor(optax.sgd(0.1), axes=AXES).init({"w": jnp.ones(3)}),
            ValueError,
            "^muon_jax.diagnostics.monitor: .*it has no axis -2",
        ),
        (
            lambda: monitor(muon_jax.muon(0.1, rules=[muon_jax.Rule("*/typo", "adamw")])).init(
                MODEL
            ),
            ValueError,
            "^muon_jax.muon: no parameter fits",
        ),
        (
            lambda: measure({"w": jnp.ones(3)}, {"w": jnp.ones(3)}, axes=AXES),
            ValueError,
            "^muon_jax.diagnostics.measure: .*it has no axis -2",
        ),
        (lambda: by_matrix(stable_rank), ValueError, "there is no tree"),
        (
            lambda: by_matrix(stable_rank, {"w": jnp.ones(3)}, axes=AXES),
            ValueError,
            "^muon_jax.diagnostics.by_matrix: .*it has no axis -2",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_params", "of_gradients"), [(jnp.float64, jnp.float32), (jnp.float32, jnp.float64)]
)
def test_steps_and_weights_of_other_widths_are_measured_as_the_weights_would_be(
    of_params, of_gradients
):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(of_params), MODEL)
        tx = monitor(optax.sgd(0.1), every=1)
        before = tx.init(params)
        step = jax.tree.map(lambda leaf: leaf.astype(of_gradients), gradients(params))
        _, after = tx.update(step, before, params)
        chex.assert_trees_all_equal_dtypes(before.measurements, after.measurements)
        exact = measure(jax.tree.map(lambda leaf: -0.1 * leaf, gradients(params)), params)
        chex.assert_trees_all_close(after.measurements, exact, rtol=1e-4)
