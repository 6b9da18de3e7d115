"""Input from Optax, Equinox, Flax and NumPy: wrappers, structures and dtypes."""

import functools
import warnings

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import covering
from flax.core import freeze
from transforms import MODEL, ROUNDING, each_case, each_case_in_full, gradients

import muon_jax
from muon_jax import recipes

OPTIMIZERS = {
    "muon": muon_jax.muon,
    "adamw": muon_jax.adamw,
    "momentum_rms": muon_jax.momentum_rms,
    **{f"recipes.{name}": getattr(recipes, name) for name in recipes.__all__},
}
EVERY = pytest.mark.parametrize(
    ("name", "factory"), [*OPTIMIZERS.items(), ("muon_clip", muon_jax.muon_clip)]
)
HEADS = {"attn": {name: {"kernel": jnp.ones((4, 2, 3))} for name in ("query", "key", "value")}}
ZEROS = jax.tree.map(jnp.zeros_like, MODEL)


OF_SOAP = {"size", "rows", "cols"}  # state fields whose arrays have other shapes


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def first(tx, grads=None, params=MODEL):
    grads = gradients(params) if grads is None else grads
    return tx.update(grads, tx.init(params), params)[0]


# Wrappers of Optax


def assert_maps_parameters(tx, params):
    """Asserts that arrays shaped like parameters are mapped, and no others."""
    state = tx.init(params)
    mapped = optax.tree_map_params(
        tx, lambda leaf: leaf + 1, state, transform_non_params=lambda leaf: leaf
    )
    chex.assert_trees_all_equal_structs(mapped, state)
    changed = jax.tree.map(lambda new, old: bool((new != old).all()), mapped, state)
    paths = dict(jax.tree_util.tree_leaves_with_path(changed))
    copies = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.ndim and not OF_SOAP & {getattr(key, "name", None) for key in path}
    ]
    assert copies
    assert [path for path, each in paths.items() if each] == copies


@EVERY
def test_optax_maps_the_copies_of_the_parameters_in_every_state(name, factory):
    clips = name in ("muon_clip", "recipes.kimi_k2")
    params = HEADS if clips else {"dense": MODEL["dense"], "embed": MODEL["embed"]}
    injected = optax.inject_hyperparams(factory)(learning_rate=0.1)
    for tx in (factory(0.1), injected, optax.MultiSteps(factory(0.1), 2)):
        assert_maps_parameters(tx, params)


@pytest.mark.parametrize(
    "tx",
    [
        muon_jax.scale_by_muon(),
        muon_jax.scale_by_momentum_rms(),
        muon_jax.muon(0.1, weight_decay=optax.constant_schedule(0.1), weight_decay_mask=matrices),
        muon_jax.muon(0.1, rules=[muon_jax.Rule("dense/*", "adamw")], fallback=optax.adam(0.1)),
        optax.chain(muon_jax.muon(0.1), muon_jax.scale_by_path({"dense/*": 0.5})),
    ],
    ids=["scale_by_muon", "momentum_rms", "mask and schedule", "rules", "factors"],
)
def test_optax_maps_parameters_whatever_the_arguments(tx):
    assert_maps_parameters(tx, {"dense": {"kernel": MODEL["dense"]["kernel"]}})


STATIC = {
    "mask": {"weight_decay_mask": matrices},
    "orthogonalizer": {"orthogonalizer": muon_jax.newton_schulz("accurate")},
    "scale": {"scale": muon_jax.hidden_size(64)},
    "dtype": {"momentum_dtype": jnp.bfloat16},
    "axes": {"axes": lambda params: muon_jax.matrix_axes(params)},
}


@pytest.mark.parametrize("arguments", STATIC.values(), ids=STATIC)
@pytest.mark.parametrize("factory", [muon_jax.muon, recipes.keller, recipes.moonlight])
def test_functions_are_no_schedules_to_inject_hyperparams(factory, arguments):
    given = {"learning_rate": 1.0, "weight_decay": 0.1, **arguments}
    tx = optax.inject_hyperparams(factory)(**given)
    hyperparameters = tx.init(MODEL).hyperparams
    assert {"learning_rate", "weight_decay"} <= set(hyperparameters)
    assert not set(arguments) & set(hyperparameters)
    chex.assert_trees_all_close(first(tx), first(factory(**given)), atol=ROUNDING)


def test_a_mask_injected_by_a_function_of_ones_own_is_refused_and_not_taken_for_false():
    def own(learning_rate, mask):
        return muon_jax.muon(learning_rate, weight_decay_mask=mask)

    with pytest.raises(TypeError, match=r"muon\(weight_decay_mask=False\): .*static_args"):
        optax.inject_hyperparams(own)(learning_rate=1.0, mask=matrices).init(MODEL)


def test_recipes_keep_their_own_defaults_when_injected():
    tx = optax.inject_hyperparams(functools.partial(recipes.keller, dtype="float32"))(0.02)
    plain = recipes.keller(0.02, dtype="float32")
    chex.assert_trees_all_close(first(tx), first(plain), atol=ROUNDING)


def test_momentum_is_the_name_of_the_hyperparameter_alone():
    state = optax.inject_hyperparams(muon_jax.muon)(learning_rate=0.1).init(MODEL)
    assert float(optax.tree.get(state, "momentum")) == pytest.approx(0.9)
    state = optax.tree.set(state, momentum=jnp.asarray(0.5))
    assert float(state.hyperparams["momentum"]) == 0.5


@pytest.mark.parametrize("factory", [muon_jax.muon, recipes.optax])
def test_an_update_outside_of_jit_routes_once(factory):
    seen = []

    def outcome(leaf):
        seen.append(leaf.path)

    tx = factory(0.1, rules=[muon_jax.Rule("*", outcome)])
    state = tx.init(MODEL)
    for _ in range(3):
        _, state = tx.update(gradients(MODEL), state, MODEL)
    assert len(seen) == len(jax.tree.leaves(MODEL))


def test_a_learning_rate_that_is_an_array_is_no_leak():
    tx = muon_jax.muon(jnp.asarray(0.1), weight_decay=jnp.asarray(0.1))
    state = tx.init(MODEL)
    step = jax.jit(tx.update)
    for _ in range(2):
        compiled, _ = step(gradients(MODEL), state, MODEL)
        updates, state = tx.update(gradients(MODEL), state, MODEL)
        chex.assert_trees_all_close(updates, compiled, atol=ROUNDING)


# Number formats

FORMATS = covering(
    [(a, b) for a in ("bfloat16", "float16", "float32") for b in ("float32", "bfloat16")],
    fast=[("bfloat16", "float32"), ("float16", "bfloat16")],
)


@each_case
@pytest.mark.parametrize(("of_params", "of_gradients"), FORMATS)
def test_a_state_keeps_its_dtypes_whatever_gradients_have(case, of_params, of_gradients):
    params = jax.tree.map(lambda leaf: leaf.astype(of_params), case.params)
    grads = jax.tree.map(lambda leaf: leaf.astype(of_gradients), gradients(case.params))
    tx = case.make()
    state = jax.eval_shape(tx.init, params)
    update = functools.partial(tx.update, **case.extra_args)
    _, after = jax.eval_shape(update, grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_adamw_trains_in_scan_on_wide_gradients():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), MODEL)
    tx = muon_jax.muon(1e-2)

    def step(carry, _):
        updates, state = tx.update(MODEL, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=2)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)
    chex.assert_tree_all_finite(trained)


@pytest.mark.parametrize("number", [np.asarray(0.1), np.float32(0.1), np.float64(0.1)])
def test_numpy_scalars_are_numbers(number):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), MODEL)
    updates = first(muon_jax.muon(number, weight_decay=number), params=params)
    expected = first(muon_jax.muon(0.1, weight_decay=0.1), params=params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, expected)
    chex.assert_trees_all_close(updates, expected, rtol=1e-2)
    with pytest.raises(ValueError, match=r"muon\(learning_rate=-0\.1"):
        muon_jax.muon(-number)


@each_case_in_full
def test_arrays_of_numpy_in_float64_give_no_warning(case):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), case.params)
    tx = case.make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "muon_jax.muon: no", UserWarning)
        tx.update(params, tx.init(params), params, **case.extra_args)


@pytest.mark.parametrize(
    "factory",
    [muon_jax.muon, muon_jax.adamw, muon_jax.momentum_rms, recipes.keller, recipes.optax],
)
@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_parameters_of_8_bits_are_refused_at_init(factory, name):
    params = {"dense": {**MODEL["dense"], name: MODEL["dense"][name].astype("float8_e4m3fn")}}
    with pytest.raises(TypeError, match=f"parameters of 8 bits .*dense/{name}.*Train a copy in"):
        factory(0.1).init(params)


def test_frozen_parameters_of_8_bits_are_left_alone():
    params = {
        "dense": {**MODEL["dense"], "table": MODEL["dense"]["kernel"].astype("float8_e4m3fn")}
    }
    tx = muon_jax.muon(
        0.1,
        rules=[muon_jax.Rule("*/table", "frozen")],
        transforms={"frozen": optax.set_to_zero()},
    )
    assert jax.tree.leaves(tx.init(params))


# Structures


def test_a_whole_equinox_model_stands_for_its_arrays():
    model = eqx.nn.MLP(3, 4, 8, 2, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_inexact_array)
    for tx in (muon_jax.muon(0.1), muon_jax.adamw(0.1, weight_decay=0.1)):
        state = tx.init(arrays)
        whole, _ = tx.update(arrays, state, model)
        chex.assert_trees_all_equal(whole, tx.update(arrays, state, arrays)[0])
    plain = eqx.nn.MLP(3, 4, 8, 2, use_bias=False, use_final_bias=False, key=jax.random.key(0))
    arrays = eqx.filter(plain, eqx.is_inexact_array)
    tx = muon_jax.scale_by_muon()
    assert jax.tree.leaves(tx.update(arrays, tx.init(arrays), plain)[0])


ENTRY = {"kernel": jnp.ones((4, 5))}
MISMATCHES = {
    "None": (
        {"kernel": None, "bias": jnp.ones(5)},
        {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)},
        "the gradient of 'kernel' is None, but the state holds an array for it. Pass zeros",
    ),
    "containers": (
        freeze({"dense": ENTRY}),
        {"dense": ENTRY},
        "gradients and parameters differ: the gradients a FrozenDict, the parameters a dict. Pass",
    ),
    "keys": (
        {"blocks": {"0": ENTRY}},
        {"blocks": {0: ENTRY}},
        "gradients and parameters differ: at ['blocks'] only the gradients ['0'], only the "
        "parameters [0]. Pass",
    ),
    "depth": (
        {"dense": ENTRY},
        {"dense": ENTRY["kernel"]},
        "gradients and parameters differ: at ['dense'] the gradients a dict, the parameters a ",
    ),
}


@pytest.mark.parametrize("name", ["scale_by_muon", "muon", "adamw"])
@pytest.mark.parametrize(("grads", "params", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_gradients_of_another_structure_are_told_by_name(name, grads, params, message):
    if name == "scale_by_muon":
        tx = muon_jax.scale_by_muon(axes=muon_jax.MatrixAxes(-2, -1))
        if "bias" in params:
            tx = muon_jax.scale_by_muon(axes={"kernel": muon_jax.MatrixAxes(0, 1), "bias": None})
    else:
        tx = getattr(muon_jax, name)(0.1)
    with pytest.raises(ValueError, match=f"^muon_jax.{name}: ") as caught:
        tx.update(grads, tx.init(params), params)
    assert message in str(caught.value)


def test_none_that_was_never_a_parameter_passes():
    params = {"bias": None, "dense": MODEL["dense"]}
    for tx in (muon_jax.muon(0.1), muon_jax.momentum_rms(0.1)):
        assert first(tx, params=params)["bias"] is None


def test_a_state_of_other_containers_is_told_by_name():
    tx = muon_jax.muon(0.1)
    with pytest.raises(ValueError, match=r"does not fit .*the state a dict, now a FrozenDict"):
        tx.update(freeze({"dense": ENTRY}), tx.init({"dense": ENTRY}))


@pytest.mark.parametrize("name", ["momentum_rms", "adamw", "muon"])
def test_empty_containers_beside_parameters_pass(name):
    params = {"dense": ENTRY, "empty": {}, "list": [], "none": None}
    tx = getattr(muon_jax, name)(0.1)
    both = optax.partition(
        {"a": tx, "b": optax.set_to_zero()}, {"dense": "a", "empty": "b", "list": "b", "none": "b"}
    )
    for each in (tx, optax.masked(tx, {**params, "dense": {"kernel": True}}), both):
        updates, _ = each.update(params, each.init(params), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
