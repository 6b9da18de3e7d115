"""Every transformation under transformations of JAX: jit, vmap, scan, donation, checks."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import covering
from matrices import gaussian
from transforms import (
    AXES,
    CASES,
    MODEL,
    ROUNDING,
    each_case,
    each_case_in_full,
    gradients,
    train,
    trained,
)

import muon_jax

# The shapes at the edge: empty, one row, one column, one entry.
EDGES = {
    str(index): {"kernel": jnp.ones(shape)}
    for index, shape in enumerate([(0, 4), (4, 0), (1, 9), (9, 1), (1, 1)])
}


def compiled_update(case):
    """Returns an update for all arguments, its state and its gradients."""
    tx = case.make()
    update = jax.jit(functools.partial(tx.update, **case.extra_args))
    return update, tx.init(case.params), gradients(case.params)


def test_every_public_transformation_is_in_the_table():
    kinds = optax.GradientTransformation, optax.GradientTransformationExtraArgs
    public = {
        name
        for name, value in inspect.getmembers(muon_jax, inspect.isfunction)
        if inspect.signature(value).return_annotation in kinds
    }
    assert public - set(CASES) == {"scale_by_path"}  # no hyperparameter; has tests of its own


@each_case_in_full
def test_updates_have_structure_shapes_and_dtypes_of_the_gradients(case):
    update, state, grads = compiled_update(case)
    updates, after = update(grads, state, case.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, case.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_tree_all_finite(updates)


@each_case_in_full
def test_jit_changes_nothing_and_no_step_on_the_way_makes_a_nan(case):
    tx = case.make()
    update, state, grads = compiled_update(case)
    jitted, _ = update(grads, state, case.params)
    with jax.debug_nans(True):  # checks every operation that is not compiled
        plain, _ = tx.update(grads, state, case.params, **case.extra_args)
    chex.assert_trees_all_close(plain, jitted, atol=ROUNDING)


@each_case_in_full
def test_a_step_compiles_once_and_gives_its_memory_to_the_next(case):
    tx = case.make()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(gradients(params), state, params, **case.extra_args)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, case.params)
    state = tx.init(params)
    for _ in range(3):
        donated = jax.tree.leaves((params, state))
        params, state = step(params, state)  # a buffer that cannot be reused would warn
        assert all(leaf.is_deleted() for leaf in donated)
    assert step._cache_size() == 1


@each_case_in_full
def test_scan_over_steps_equals_a_loop(case):
    tx = case.make()

    def step(carry, index):
        params, state = carry
        updates, state = tx.update(gradients(params, index), state, params, **case.extra_args)
        return (optax.apply_updates(params, updates), state), None

    start = case.params, tx.init(case.params)
    (scanned, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(3.0)))(start)
    chex.assert_trees_all_close(scanned, trained(case), atol=ROUNDING)


@each_case_in_full
def test_vmap_over_models_equals_a_loop(case):
    tx = case.make()
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), case.params)

    def one(params):
        return tx.update(gradients(params), tx.init(params), params, **case.extra_args)[0]

    together, alone = jax.jit(jax.vmap(one))(models), jax.jit(one)
    for index in range(2):
        of_model = functools.partial(jax.tree.map, lambda leaf, index=index: leaf[index])
        chex.assert_trees_all_close(of_model(together), alone(of_model(models)), atol=ROUNDING)


@each_case_in_full
def test_no_tracer_leaks_and_no_array_travels(case):
    with jax.checking_leaks():
        update, state, grads = compiled_update(case)
        update(grads, state, case.params)
    with jax.transfer_guard("disallow"):
        update(grads, state, case.params)


@each_case_in_full
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_every_precision_is_kept_and_stays_finite(case, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), case.params)
        trained_in = train(case.make(), params, case.extra_args, steps=2)
        chex.assert_trees_all_equal_shapes_and_dtypes(trained_in, params)
        chex.assert_tree_all_finite(trained_in)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "name",
    covering(["scale_by_muon", "clip_qk", "momentum_rms"], fast=["scale_by_muon", "clip_qk"]),
)
def test_nothing_is_promoted_in_silence(name, dtype):
    """Except for the counts of optax's Adam, which raise an error without promotion."""
    case = CASES[name]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), case.params)
    tx, grads = case.make(), gradients(params)
    usual, _ = tx.update(grads, tx.init(params), params, **case.extra_args)
    with jax.numpy_dtype_promotion("strict"):
        strict, _ = tx.update(grads, tx.init(params), params, **case.extra_args)
    chex.assert_trees_all_equal(strict, usual)


@each_case_in_full
def test_none_and_shapes_at_the_edge_are_trained_with_the_rest(case):
    params = {**case.params, "absent": None, "edges": EDGES}
    stepped = train(case.make(), params, case.extra_args, steps=1)
    assert stepped["absent"] is None
    chex.assert_trees_all_equal_shapes_and_dtypes(stepped, params)
    chex.assert_tree_all_finite(stepped)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (0, 4), (3, 0, 4)])
def test_a_matrix_of_one_row_keeps_its_direction(shape):
    params = {"kernel": jnp.ones(shape)}
    tx = muon_jax.scale_by_muon(axes=AXES, scale="none")
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], np.ones(shape) / np.sqrt(max(shape)), atol=0.1)


@each_case
@pytest.mark.parametrize("tree", [{}, [], {"absent": None}], ids=str)
def test_a_tree_without_arrays_is_refused_in_words_or_has_no_update(case, tree):
    tx = case.make()
    if case.factory in (muon_jax.adamw, muon_jax.momentum_rms, muon_jax.scale_by_momentum_rms):
        assert tx.update(tree, tx.init(tree), tree)[0] == tree
    else:
        with pytest.raises(ValueError, match=r"^muon_jax[.\w]+: .*parameters"):
            tx.init(tree)


@pytest.mark.parametrize("scale", ["match_rms", "keller", "spectral", "update_norm", "none"])
def test_every_scale_passes_empty_matrices(scale):
    tx = muon_jax.scale_by_muon(axes=AXES, scale=scale)
    for shape in ((0, 4), (4, 0), (0, 2, 3)):
        empty = jnp.zeros(shape)
        assert tx.update(empty, tx.init(empty))[0].shape == shape


def test_x64_is_kept_in_the_state():
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(gaussian(6, 8), jnp.float64)}
        state = muon_jax.scale_by_muon(axes=AXES).init(params)
        assert state.mu["kernel"].dtype == jnp.float64


def test_float16_leaves_of_adamw_survive_gradients_that_its_squares_do_not():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), MODEL)
    tx = muon_jax.muon(0.1, fallback_learning_rate=0.1)
    for size in (0.0, 1e-4, 300.0):
        grads = jax.tree.map(lambda leaf, size=size: jnp.full_like(leaf, size), params)
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        chex.assert_tree_all_finite(updates)
        if size:
            first = (
                1 + 0.9 / 1.9
            )  # b1·(1 − b1) / (1 − b1²) from Nesterov's momentum, and the gradient
            expected = jnp.full_like(params["norm"]["scale"], -0.1 * first)
            np.testing.assert_allclose(updates["norm"]["scale"], expected, rtol=2e-3)
