"""scale_by_muon: the recurrence, the momentum identity, the state, leaves without a view."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matrices import gaussian, polar

import muon_jax
from muon_jax import MatrixAxes

SHAPES = {"wide": (4, 12), "tall": (12, 4), "square": (6, 6), "stack": (3, 4, 8)}
AXES = MatrixAxes(rows=-2, cols=-1)


def gradients(step: int) -> dict[str, np.ndarray]:
    return {
        name: gaussian(*shape, seed=100 * step + index)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def as_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def run(tx: optax.GradientTransformation, steps: int):
    state = tx.init(as_float32(gradients(0)))
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(as_float32(gradients(step)), state)
        yield updates


@pytest.mark.parametrize("nesterov", [True, False])
def test_follows_its_recurrence_in_float64_numpy(nesterov):
    decay, averages = 0.9, dict.fromkeys(SHAPES, 0.0)
    tx = muon_jax.scale_by_muon(
        momentum=decay,
        nesterov=nesterov,
        axes=AXES,
        orthogonalizer=muon_jax.polar_by_svd(),
        scale="match_rms",
    )
    for step, updates in enumerate(run(tx, 5)):
        for name, gradient in gradients(step).items():
            averages[name] = decay * averages[name] + (1 - decay) * gradient
            ahead = decay * averages[name] + (1 - decay) * gradient
            expected = polar(ahead if nesterov else averages[name])
            expected = expected * 0.2 * np.sqrt(max(gradient.shape[-2:]))
            np.testing.assert_allclose(updates[name], expected, atol=2e-5)


def test_the_average_and_heavy_ball_give_one_update():
    """The polar factor ignores a scale, and M = μM + (1 − μ)g is (1 − μ) times M = μM + g."""
    decay, heavy = 0.9, dict.fromkeys(SHAPES, 0.0)
    by_svd = muon_jax.polar_by_svd()  # Newton–Schulz would multiply the rounding of each side
    tx = muon_jax.scale_by_muon(momentum=decay, axes=AXES, orthogonalizer=by_svd, scale="match_rms")
    for step, updates in enumerate(run(tx, 5)):
        heavy = {name: decay * heavy[name] + g for name, g in gradients(step).items()}
        ahead = {name: decay * heavy[name] + g for name, g in gradients(step).items()}
        expected = muon_jax.orthogonalize_tree(
            as_float32(ahead), AXES, scale="match_rms", orthogonalizer=by_svd
        )
        for name in SHAPES:
            np.testing.assert_allclose(updates[name], expected[name], atol=2e-5)


def test_momentum_may_follow_a_schedule():
    schedule = optax.linear_schedule(0.0, 0.9, 3)
    tx = muon_jax.scale_by_muon(momentum=schedule, axes=AXES)
    state = tx.init(as_float32(gradients(0)))
    average = 0.0
    for step in range(4):
        _, state = tx.update(as_float32(gradients(step)), state)
        decay = float(schedule(step))
        average = decay * average + (1 - decay) * gradients(step)["wide"]
        np.testing.assert_allclose(state.mu["wide"], average, rtol=1e-5, atol=1e-6)


def test_the_state_is_data_alone():
    state = muon_jax.scale_by_muon(axes=AXES).init(as_float32(gradients(0)))
    assert state._fields == ("count", "mu", "precondition")
    assert jax.tree.map(jnp.shape, state.mu) == SHAPES
    assert len(jax.tree.leaves(state)) == 1 + len(SHAPES)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_momentum_has_the_dtype_asked_for_and_updates_that_of_gradients(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), as_float32(gradients(0)))
    tx = muon_jax.scale_by_muon(axes=AXES, momentum_dtype=dtype)
    updates, state = tx.update(params, tx.init(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.mu)} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_leaves_without_a_view_pass_unchanged_and_hold_no_momentum():
    params = {"matrix": jnp.asarray(gaussian(4, 8)), "vector": jnp.arange(3.0)}
    tx = muon_jax.scale_by_muon(axes={"matrix": AXES, "vector": None})
    state = tx.init(params)
    updates, state = tx.update(params, state)
    np.testing.assert_array_equal(updates["vector"], params["vector"])
    assert state.mu["vector"] == optax.MaskedNode()


def test_the_axes_may_be_a_function_of_the_parameters():
    params = {"matrix": jnp.asarray(gaussian(4, 8))}
    by_value = muon_jax.scale_by_muon(axes=AXES)
    by_function = muon_jax.scale_by_muon(axes=lambda tree: jax.tree.map(lambda _: AXES, tree))
    results = [tx.update(params, tx.init(params))[0]["matrix"] for tx in (by_value, by_function)]
    np.testing.assert_array_equal(*results)


def test_scanned_batched_and_separate_leaves_give_the_same_update():
    stack = jnp.asarray(gaussian(5, 6, 8))
    separate = [stack[index] for index in range(5)]
    tx = muon_jax.scale_by_muon(axes=AXES)
    together, _ = tx.update(stack, tx.init(stack))
    apart, _ = tx.update(separate, tx.init(separate))
    np.testing.assert_allclose(together, jnp.stack(apart), atol=1e-6)


@pytest.mark.parametrize(
    ("stored", "axes", "scale"),
    [("in_out", MatrixAxes(0, 1), "keller"), ("out_in", MatrixAxes(1, 0), "keller")],
)
def test_a_transposed_parameter_gets_the_transposed_update(stored, axes, scale):
    kernel = jnp.asarray(gaussian(4, 8))
    tx = muon_jax.scale_by_muon(momentum=0.0, axes=axes, scale=scale)
    leaf = kernel if stored == "in_out" else kernel.T
    update, _ = tx.update(leaf, tx.init(leaf))
    expected = muon_jax.orthogonalize_tree(kernel, MatrixAxes(0, 1), scale=scale)
    np.testing.assert_allclose(update if stored == "in_out" else update.T, expected, atol=1e-6)
