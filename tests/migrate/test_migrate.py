"""A run that changes its library halfway ends like a run that does not."""

import re
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_runs as run
from covering import covering
from matrices import gaussian
from recipe_runs import from_jax, to_jax, trained

import muon_jax
from muon_jax import migrate, recipes

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "torch.npz")
START = run.weights()
FLOAT32 = 2**-24 * run.QUINTIC[0] ** 5  # as in test_parity_torch
PARAMS = to_jax({name: START[name] for name in ("wide", "vector")})
MATRICES = to_jax({name: START[name] for name in run.MATRICES})
WEIGHTS = {f"{name}/kernel": number for number, name in enumerate(run.MATRICES)}
GROUPS = [{"params": list(WEIGHTS.values()), "param_names": list(run.MATRICES)}]
FIRST, SECOND = range(run.HALFWAY), range(run.HALFWAY, run.STEPS)

RATE = optax.linear_schedule(run.RATE, 0.0, run.STEPS)  # its count must not restart
JORDAN = muon_jax.newton_schulz("keller", normalization="frobenius")
MUON = muon_jax.muon(
    RATE,
    momentum=0.95,
    weight_decay=run.DECAY,
    nesterov=False,
    orthogonalizer=JORDAN,
    scale="keller",
    fallback=optax.adamw(RATE, weight_decay=0.0),
)


def assert_ends_meet(params: Any, expected: Any, limit: float = FLOAT32) -> None:
    params, expected = from_jax(params), from_jax(expected)
    for name, weight in expected.items():
        assert run.distance(params[name], weight, START[name]) < limit, name


@pytest.mark.parametrize(
    ("nesterov", "there"),
    covering(
        [(True, True), (True, False), (False, True), (False, False)],
        fast=[(True, True), (False, False)],
    ),
)
def test_a_run_crosses_from_and_to_optax(nesterov, there):
    """Without Nesterov `muon` equals optax's method; with Nesterov `recipes.optax` does."""
    theirs = optax.contrib.muon(RATE, weight_decay=run.DECAY, nesterov=nesterov)
    ours = recipes.optax(RATE, weight_decay=run.DECAY) if nesterov else MUON
    expected, _ = trained(theirs, PARAMS)
    before, after = (theirs, ours) if there else (ours, theirs)
    params, state = trained(before, PARAMS, steps=FIRST)
    migrated = (migrate.from_optax if there else migrate.to_optax)(state, after.init(params))
    assert_ends_meet(trained(after, params, migrated, SECOND)[0], expected)


def test_a_bare_transformation_crosses_too():
    axes = muon_jax.MatrixAxes(0, 1)
    numbers = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), MATRICES)
    theirs = optax.contrib.scale_by_muon(weight_dimension_numbers=numbers)
    ours = muon_jax.scale_by_muon(axes=axes)
    _, state = trained(ours, MATRICES, steps=FIRST)
    there = migrate.to_optax(state, theirs.init(MATRICES))
    chex.assert_trees_all_equal(there.mu, state.mu)
    chex.assert_trees_all_equal(migrate.from_optax(there, ours.init(MATRICES)), state)


@pytest.mark.slow
def test_other_averages_begin_anew_with_their_own_count():
    theirs = optax.contrib.muon(RATE)
    _, state = trained(theirs, PARAMS, steps=FIRST)
    ours = optax.chain(recipes.optax(RATE), optax.ema(0.99))
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    migrated = migrate.from_optax(state, ours.init(PARAMS))
    chex.assert_trees_all_close(
        ours.update(gradients, migrated, PARAMS)[0],
        theirs.update(gradients, state, PARAMS)[0],
        rtol=1e-4,
        atol=1e-8,
    )


def test_muon_goes_on_from_adamw_as_if_it_had_trained_from_the_start():
    """If the decays are equal, AdamW's first moment is Muon's momentum."""
    muon = muon_jax.muon(RATE, momentum=0.9, orthogonalizer=JORDAN)
    expected, _ = trained(muon, PARAMS)
    halfway, _ = trained(muon, PARAMS, steps=FIRST)
    _, adamw = trained(optax.adamw(RATE, b1=0.9, b2=0.95), PARAMS, steps=FIRST)
    warm = migrate.from_adamw(adamw, muon.init(PARAMS), momentum=0.9, b1=0.9)
    assert_ends_meet(trained(muon, halfway, warm, SECOND)[0], expected)


@pytest.mark.parametrize("steps", [0, 1, 1000])
def test_a_warm_start_weighs_the_gradients_as_muon_would(steps):
    """A steady gradient G makes Muon's momentum (1 − μᵗ) G."""
    gradient = {"kernel": jnp.asarray(gaussian(4, 6), jnp.float32)}
    tx = optax.scale_by_adam(b1=0.8)
    state = tx.init(gradient)._replace(
        count=jnp.asarray(steps, jnp.int32),
        mu=jax.tree.map(lambda leaf: (1 - 0.8**steps) * leaf, gradient),
    )
    fresh = muon_jax.scale_by_muon().init(gradient)
    warm = migrate.from_adamw(state, fresh, momentum=0.95, b1=0.8)
    expected = jax.tree.map(lambda leaf: (1 - 0.95**steps) * leaf, gradient)
    chex.assert_trees_all_close(warm.mu, expected, rtol=1e-6)
    assert int(warm.count) == steps


TORCH = recipes.torch(run.RATE, weight_decay=run.DECAY)


def test_a_run_goes_on_from_torch():
    """The second half has the rounding error of PyTorch's own; see test_parity_torch."""
    halfway = to_jax({name: GOLDEN[f"torch_halfway/{name}"] for name in run.MATRICES})
    buffers = [GOLDEN[f"torch_buffer/{name}"] for name in run.MATRICES]
    state_dict = {
        "state": {number: {"momentum_buffer": buffer} for number, buffer in enumerate(buffers)},
        "param_groups": GROUPS,
    }
    axes = muon_jax.matrix_axes(halfway)
    state = migrate.from_torch(
        state_dict, TORCH.init(halfway), WEIGHTS, axes=axes, steps=run.HALFWAY
    )
    found = from_jax(trained(TORCH, halfway, state, SECOND)[0])
    for name in run.MATRICES:
        golden = GOLDEN[f"torch_original/{name}"]
        factor = max(1, golden.shape[0] / golden.shape[1]) ** 0.5
        exact = run.muon(START[name], run.gradients_of(name), factor=factor)
        rounding = run.distance(golden, exact, START[name])
        limit = 3 * rounding if name == "large" else rounding
        assert run.distance(found[name], golden, START[name]) < limit


@pytest.mark.parametrize("heavy_ball", [None, run.MOMENTUM])
def test_a_run_goes_on_in_torch(heavy_ball):
    """Momentum depends on gradients alone, so the buffers equal PyTorch's to float32."""
    _, state = trained(TORCH, MATRICES, steps=FIRST)
    axes = muon_jax.matrix_axes(MATRICES)
    fresh = {"state": {}, "param_groups": GROUPS}
    filled = migrate.to_torch(state, fresh, WEIGHTS, axes=axes, heavy_ball=heavy_ball)
    share = 1 if heavy_ball is None else 1 - heavy_ball
    for number, name in enumerate(run.MATRICES):
        buffer = filled["state"][number]["momentum_buffer"]
        np.testing.assert_allclose(
            share * buffer, GOLDEN[f"torch_buffer/{name}"], rtol=1e-5, atol=1e-6
        )
    back = migrate.from_torch(
        filled,
        TORCH.init(MATRICES),
        WEIGHTS,
        axes=axes,
        steps=run.HALFWAY,
        heavy_ball=heavy_ball,
    )
    chex.assert_trees_all_close(back, state, rtol=1e-6)
    assert fresh["state"] == {}


MODEL = {
    "attn": {"query": {"kernel": jnp.asarray(gaussian(6, 2, 4), jnp.float32)}},
    "experts": {"kernel": jnp.asarray(gaussian(2, 6, 10), jnp.float32)},
    "fused": {"kernel": jnp.asarray(gaussian(6, 12), jnp.float32)},
    "norm": {"scale": jnp.ones(6)},
}
MODEL_RULES = [muon_jax.Rule("fused/kernel", muon_jax.MatrixAxes(0, 1, split=3))]
MODEL_AXES = muon_jax.matrix_axes(MODEL, rules=MODEL_RULES)
MODEL_WEIGHTS = {
    "attn/query/kernel": "query",
    "experts/kernel": ["expert.0", "expert.1"],
    "fused/kernel": 3,
}
MODEL_DICT = {
    "state": {},
    "param_groups": [
        {"params": [0, 1, 2, 3], "param_names": ["query", "expert.0", "expert.1", "qkv"]}
    ],
}


def test_heads_stacks_and_fused_kernels_lie_in_torch_as_they_do_there():
    """PyTorch stores (outputs, inputs), heads flattened, experts apart, fused kernels whole."""
    tx = muon_jax.muon(0.1, rules=MODEL_RULES)
    _, state = tx.update(MODEL, tx.init(MODEL), MODEL)
    filled = migrate.to_torch(state, MODEL_DICT, MODEL_WEIGHTS, axes=MODEL_AXES)
    query, first, second, fused = (
        filled["state"][number]["momentum_buffer"] / 0.1 for number in range(4)
    )
    np.testing.assert_allclose(query, MODEL["attn"]["query"]["kernel"].reshape(6, 8).T, rtol=1e-5)
    np.testing.assert_allclose([first.T, second.T], MODEL["experts"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(fused.T, MODEL["fused"]["kernel"], rtol=1e-5)
    back = migrate.from_torch(filled, tx.init(MODEL), MODEL_WEIGHTS, axes=MODEL_AXES, steps=1)
    chex.assert_trees_all_close(back.inner_states["muon"], state.inner_states["muon"], rtol=1e-6)
    chex.assert_trees_all_equal(back.inner_states["adamw"], tx.init(MODEL).inner_states["adamw"])


def test_the_new_state_keeps_its_own_dtypes_devices_and_hyperparameters():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    params = {"kernel": jax.device_put(jnp.ones((4, 8)), sharding)}
    tx = optax.inject_hyperparams(muon_jax.muon, static_args=("momentum_dtype",))(
        learning_rate=0.1, momentum_dtype=jnp.bfloat16
    )
    fresh = tx.init(params)
    _, adamw = optax.adamw(0.1).update(params, optax.adamw(0.1).init(params), params)
    warm = migrate.from_adamw(adamw, fresh)
    momentum = optax.tree.get(warm, "mu", filtering=lambda path, _: "MuonState" in str(path))
    assert momentum["kernel"].dtype == jnp.bfloat16
    assert momentum["kernel"].sharding == sharding
    assert warm.hyperparams["learning_rate"] == fresh.hyperparams["learning_rate"]
    assert int(warm.count) == 1


DENSE = {"dense": {"kernel": jnp.ones((4, 6))}}
EMBEDDED = {**DENSE, "embed": {"embedding": jnp.ones((8, 4))}}
TWICE = {"a": DENSE["dense"], "b": DENSE["dense"]}
WIDER = {"dense": {"kernel": jnp.ones((4, 9))}}
TX = muon_jax.muon(0.1)
AXES = muon_jax.MatrixAxes(0, 1)
BUFFER = {"state": {0: {"momentum_buffer": np.ones((6, 4))}}, "param_groups": [{"params": [0]}]}


KERNEL = {"dense/kernel": 0}


class OnAnotherDevice:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def from_torch(state_dict=BUFFER, weights=KERNEL, axes=AXES, **options):
    state = TX.init(DENSE)
    return migrate.from_torch(state_dict, state, weights, axes=axes, **{"steps": 9, **options})


def with_buffer(buffer):
    return {**BUFFER, "state": {0: {"momentum_buffer": buffer}}}


REFUSED = {
    "no optimizer at all": (
        lambda: migrate.from_optax(DENSE, TX.init(DENSE)),
        "muon_jax.migrate.from_optax: optax_state holds no moments of Muon or Adam. Give the state "
        "that `init` or `update` of the optimizer returned.",
    ),
    "nothing to fill": (
        lambda: migrate.from_adamw(optax.adam(0.1).init(DENSE), optax.sgd(0.1).init(DENSE)),
        "muon_jax.migrate.from_adamw: state holds no moments of Muon or Adam.",
    ),
    "another shape": (
        lambda: migrate.from_optax(optax.contrib.muon(0.1).init(DENSE), TX.init(WIDER)),
        "muon_jax.migrate.from_optax: 'dense/kernel' has Muon's momentum of shape (4, 6) in "
        "optax_state and Muon's momentum of shape (4, 9) in state. Use an optimizer with the "
        "same routing, by recipes.optax or rules=[...], and AdamW for the rest; migrate.from_adamw "
        "converts moments of Adam to Muon's.",
    ),
    "another branch": (
        lambda: migrate.from_optax(optax.contrib.muon(0.1).init(EMBEDDED), TX.init(EMBEDDED)),
        "'embed/embedding' has Muon's momentum of shape (8, 4) in optax_state and Adam's moments "
        "of shape (8, 4) in state.",
    ),
    "a missing leaf": (
        lambda: migrate.to_optax(TX.init(DENSE), optax.contrib.muon(0.1).init(EMBEDDED)),
        "muon_jax.migrate.to_optax: 'embed/embedding' has no moments in state and Muon's momentum "
        "of shape (8, 4) in optax_state. Give optax.contrib.muon the same routing, by "
        "muon_weight_dimension_numbers=;",
    ),
    "a leaf too many": (
        lambda: migrate.from_adamw(optax.adam(0.1).init(EMBEDDED), TX.init(DENSE)),
        "'embed/embedding' has Adam's moments of shape (8, 4) in adamw_state and no moments in "
        "state. Use a state of a run with the same parameters, and a new optimizer that trains all "
        "parameters but Muon's with AdamW.",
    ),
    "a decay of one": (
        lambda: migrate.from_adamw(optax.adam(0.1).init(DENSE), TX.init(DENSE), b1=1.0),
        "muon_jax.migrate.from_adamw(b1=1.0): give a number in [0, 1).",
    ),
    "no steps": (
        lambda: from_torch(steps=0),
        "muon_jax.migrate.from_torch(steps=0): give a whole number of at least 1.",
    ),
    "no state_dict": (
        lambda: from_torch({0: np.ones((6, 4))}),
        "muon_jax.migrate.from_torch: state_dict lacks 'state' or 'param_groups'. Give what "
        "`state_dict()` of the PyTorch optimizer returned.",
    ),
    "an unnamed matrix": (
        lambda: from_torch(weights={}),
        "muon_jax.migrate.from_torch: weights and the matrices of state differ in 'dense/kernel'. "
        "Name the PyTorch parameter of every matrix that Muon trains, and of no other.",
    ),
    "an unknown parameter": (
        lambda: from_torch(weights={"dense/kernel": "fc.weight"}),
        "muon_jax.migrate.from_torch: 'dense/kernel' names parameter 'fc.weight', which "
        "state_dict does not have. Choose from 0; state_dict has names if the optimizer was made "
        "from `named_parameters()`.",
    ),
    "a parameter of two matrices": (
        lambda: migrate.to_torch(
            TX.init(TWICE), BUFFER, dict.fromkeys(("a/kernel", "b/kernel"), 0), axes=AXES
        ),
        "muon_jax.migrate.to_torch: 'a/kernel' and 'b/kernel' both name parameter 0. Name a "
        "different parameter for each.",
    ),
    "no buffer": (
        lambda: from_torch({**BUFFER, "state": {}}),
        "muon_jax.migrate.from_torch: parameter 0 of state_dict, for 'dense/kernel', has no "
        "'momentum_buffer'. Take the state_dict after a step, of the optimizer that trains this "
        "matrix.",
    ),
    "a buffer that lies like JAX's": (
        lambda: from_torch(with_buffer(np.ones((4, 6)))),
        "muon_jax.migrate.from_torch: 'dense/kernel' of shape (4, 6), by MatrixAxes(rows=0, "
        "cols=1), is 1 of shape (6, 4) in PyTorch, but the buffers have shapes (4, 6). Give the "
        "right parameters in weights, and the right view in axes.",
    ),
    "a buffer out of reach": (
        lambda: from_torch(with_buffer(OnAnotherDevice())),
        "muon_jax.migrate.from_torch: NumPy cannot read the 'momentum_buffer' of parameter 0, for "
        "'dense/kernel': can't convert cuda:0 device type tensor to numpy. "
        "Replace it by `buffer.float().cpu().numpy()`.",
    ),
    "no view": (
        lambda: from_torch(axes={"dense": {"kernel": None}}),
        "muon_jax.migrate.from_torch: axes has no view of 'dense/kernel', which Muon trains. Give "
        "the views that it trains by, such as muon_jax.matrix_axes(params).",
    ),
    "a stack too high": (
        lambda: migrate.to_torch(
            TX.init(DENSE),
            {"state": {}, "param_groups": [{"params": [0, 1]}]},
            {"dense/kernel": [0, 1]},
            axes=AXES,
        ),
        "muon_jax.migrate.to_torch: 'dense/kernel', by MatrixAxes(rows=0, cols=1), is 1 matrices, "
        "but 2 parameters of PyTorch. Name one parameter for every matrix in weights, or another "
        "view in axes.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_its_path(case):
    migration, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        migration()
