"""Bad input raises one error that names the call, the value and the remedy."""

import dataclasses
import functools
import re

import jax.numpy as jnp
import optax
import pytest

import muon_jax
from muon_jax import recipes

MATRIX = {"kernel": jnp.ones((2, 3))}
ORTHOGONALIZERS = {
    "newton_schulz": muon_jax.newton_schulz(),
    "polar_by_svd": muon_jax.polar_by_svd(),
    "inverse_sqrt": muon_jax.inverse_sqrt(),
    "polar_to": muon_jax.polar_to(),
}


@dataclasses.dataclass
class Unhashable:
    def __call__(self, matrices):
        return matrices


def init(tx: optax.GradientTransformation, params) -> object:
    return tx.init(params)


BAD_VALUES = [
    (lambda: muon_jax.scale_by_muon(momentum=1.5), "scale_by_muon(momentum=1.5)"),
    (lambda: muon_jax.scale_by_muon(scale="rms"), "scale_by_muon(scale='rms')"),
    (lambda: muon_jax.scale_by_muon(chunk_bytes=0), "scale_by_muon(chunk_bytes=0)"),
    (
        lambda: muon_jax.scale_by_muon(momentum_dtype="float8_e4m3fn"),
        "scale_by_muon(momentum_dtype='float8_e4m3fn')",
    ),
    (
        lambda: muon_jax.orthogonalize_tree(MATRIX, chunk_bytes=0),
        "orthogonalize_tree(chunk_bytes=0)",
    ),
    (lambda: muon_jax.newton_schulz(steps=0), "newton_schulz(steps=0)"),
    (lambda: muon_jax.newton_schulz(dtype="float8"), "newton_schulz(dtype='float8')"),
    (lambda: muon_jax.newton_schulz(form="gram"), "newton_schulz(form='gram')"),
    (lambda: muon_jax.newton_schulz("fast", steps=7), "newton_schulz(steps=7)"),
    (lambda: muon_jax.newton_schulz("cans", steps=7), "newton_schulz(steps=7)"),
    (
        lambda: muon_jax.newton_schulz([(1.0, float("nan"))]),
        "newton_schulz(coefficients=[(1.0, nan)])",
    ),
    (lambda: muon_jax.inverse_sqrt(0), "inverse_sqrt(steps=0)"),
    (lambda: muon_jax.polar_to(1e-9), "polar_to(tolerance=1e-09)"),
    (lambda: muon_jax.polar_to(1.5), "polar_to(tolerance=1.5)"),
    (lambda: muon_jax.polar_to(max_steps=0), "polar_to(max_steps=0)"),
    (
        lambda: muon_jax.newton_schulz(normalization=["schatten"]),
        "newton_schulz(normalization=['schatten'])",
    ),
    (lambda: muon_jax.newton_schulz().plan(0, 4), "newton_schulz().plan(rows=0)"),
    (lambda: recipes.procrustes(momentum=1.5), "recipes.procrustes(momentum=1.5)"),
    (lambda: recipes.keller(adam_learning_rate=-1.0), "recipes.keller(adam_learning_rate=-1.0)"),
    (lambda: recipes.torch(adam_weight_decay=-1.0), "recipes.torch(adam_weight_decay=-1.0)"),
    (lambda: recipes.optax(0.1, adam_learning_rate=-1.0), "recipes.optax(adam_learning_rate=-1.0)"),
    (lambda: muon_jax.muon(1.0, ambiguous="fall"), "muon(ambiguous='fall')"),
    (
        lambda: muon_jax.muon(1.0, rules=[muon_jax.Rule("a", "frozen")]).init({"a": jnp.ones(2)}),
        "muon: rules give 'a' the label 'frozen'",
    ),
    (lambda: muon_jax.clip_qk(100.0, {}), "clip_qk(targets={})"),
    (lambda: muon_jax.hidden_size(0), "hidden_size(width=0)"),
    (lambda: muon_jax.muon(-1.0), "muon(learning_rate=-1.0)"),
    (lambda: muon_jax.muon(1.0, weight_decay=-0.1), "muon(weight_decay=-0.1)"),
    (
        lambda: muon_jax.muon(1.0, fallback=optax.sgd(1.0), fallback_learning_rate=0.1),
        "muon(fallback_learning_rate=0.1)",
    ),
    (lambda: muon_jax.muon(1.0, transforms={"adamw": 1}), "muon(transforms={'adamw': 1})"),
    (lambda: muon_jax.adamw(1.0, b2=1.5), "adamw(b2=1.5)"),
    (lambda: muon_jax.scale_by_momentum_rms(momentum=-0.1), "scale_by_momentum_rms(momentum=-0.1)"),
    (lambda: muon_jax.momentum_rms(float("inf")), "momentum_rms(learning_rate=inf)"),
]

BAD_TYPES = [
    (lambda: muon_jax.skip_nonfinite(True), "skip_nonfinite(tx=True)"),
    (lambda: muon_jax.muon(1.0, nesterov="yes"), "muon(nesterov='yes')"),
    (lambda: muon_jax.scale_by_muon(nesterov=1), "scale_by_muon(nesterov=1)"),
    (lambda: muon_jax.muon(1.0, fallback="adam"), "muon(fallback='adam')"),
    (lambda: muon_jax.muon(1.0, transforms={"frozen": 1}), "muon(transforms['frozen']=1)"),
    (lambda: muon_jax.muon(1.0, transforms=["frozen"]), "muon(transforms=['frozen'])"),
    (
        lambda: muon_jax.muon(1.0, rules=muon_jax.Rule("embed", "adamw")),
        "muon: rules is Rule(pattern='embed'",
    ),
    (lambda: muon_jax.muon(1.0, rules=["embed"]), "muon: rules holds 'embed'"),
    (
        lambda: muon_jax.scale_by_muon(orthogonalizer=Unhashable()),
        "scale_by_muon(orthogonalizer=Unhashable())",
    ),
    (
        lambda: muon_jax.scale_by_muon(axes={"a": "muon"}).init({"a": jnp.ones((2, 2))}),
        "scale_by_muon: axes holds 'muon'",
    ),
    (lambda: muon_jax.polar_to(abs), "polar_to(tolerance=<built-in function abs>)"),
    (lambda: muon_jax.newton_schulz().plan(4, 3.5), "newton_schulz().plan(cols=3.5)"),
    (lambda: recipes.optax(1.0, beta=abs), "recipes.optax(beta=<built-in function abs>)"),
    (
        lambda: recipes.procrustes(momentum=abs),
        "recipes.procrustes(momentum=<built-in function abs>)",
    ),
    (lambda: muon_jax.clip_qk(float), "clip_qk(threshold=<class 'float'>)"),
    (
        lambda: muon_jax.scale_by_momentum_rms(momentum=float),
        "scale_by_momentum_rms(momentum=<class 'float'>)",
    ),
    (lambda: muon_jax.scale_by_muon(momentum="0.9"), "scale_by_muon(momentum='0.9')"),
    (lambda: muon_jax.scale_by_muon(orthogonalizer="svd"), "scale_by_muon(orthogonalizer='svd')"),
    (
        lambda: muon_jax.scale_by_muon(momentum_dtype="half a float"),
        "scale_by_muon(momentum_dtype='half a float')",
    ),
    *(
        (
            functools.partial(orthogonalizer, jnp.ones((1, 2, 2), jnp.complex64)),
            f"{call}: the matrices are complex64",
        )
        for call, orthogonalizer in ORTHOGONALIZERS.items()
    ),
    (lambda: muon_jax.newton_schulz(steps=2.5), "newton_schulz(steps=2.5)"),
]

BAD_TREES = [
    (
        lambda: init(
            muon_jax.scale_by_muon(), {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        ),
        "scale_by_muon: no matrices by the default rules: dense/bias (3,)",
    ),
    (lambda: init(muon_jax.scale_by_muon(), {}), "scale_by_muon: the parameters hold no array"),
    (
        lambda: init(
            muon_jax.scale_by_muon(axes=muon_jax.MatrixAxes(0, 2)), {"dense": jnp.ones((2, 3))}
        ),
        "scale_by_muon: MatrixAxes(rows=0, cols=2) does not fit 'dense'",
    ),
]


def check(message: str, start: str) -> None:
    """Checks that a message names the call and the value, and then a remedy."""
    assert message.startswith(f"muon_jax.{start}")
    assert re.search(r"[:.] \S.*\.$", message[len(f"muon_jax.{start}") :])


@pytest.mark.parametrize(("call", "start"), BAD_VALUES + BAD_TREES)
def test_bad_values(call, start):
    with pytest.raises(ValueError, match="muon_jax") as caught:
        call()
    check(str(caught.value), start)


OF_MUON = {
    "momentum": 1.5,
    "nesterov": 1,
    "orthogonalizer": "svd",
    "scale": "rms",
    "momentum_dtype": "float8_e4m3fn",
    "chunk_bytes": 0,
    "distribute": "on",
}
OF_MOMENTUM_RMS = {"momentum": abs, "max_norm": -1.0}
BAD_ARGUMENTS = {
    "scale_by_muon": OF_MUON,
    "muon": {name: value for name, value in OF_MUON.items() if name != "chunk_bytes"},
    "scale_by_momentum_rms": OF_MOMENTUM_RMS,
    "momentum_rms": OF_MOMENTUM_RMS,
}


@pytest.mark.parametrize(
    ("call", "argument"),
    [(call, argument) for call, arguments in BAD_ARGUMENTS.items() for argument in arguments],
)
def test_an_argument_is_refused_in_the_name_of_the_call_that_has_it(call, argument):
    value = BAD_ARGUMENTS[call][argument]
    rate = () if call.startswith("scale_by_") else (1e-3,)
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(muon_jax, call)(*rate, **{argument: value})
    assert str(caught.value).startswith(f"muon_jax.{call}({argument}={value!r}): ")


def test_axes_of_another_tree_are_refused_with_what_jax_says_of_them():
    said = r"axes is no prefix of the parameters: .*[^.]\. Give a MatrixAxes or None for every"
    with pytest.raises(ValueError, match=f"muon_jax.scale_by_muon: {said}"):
        init(muon_jax.scale_by_muon(axes={"other": None}), MATRIX)


def test_masks_of_another_tree_are_refused_by_name():
    said = r"weight_decay_mask is no prefix of the parameters: .*\. Give a tree of booleans, or a"
    with pytest.raises(ValueError, match=f"muon_jax.muon: {said}"):
        init(muon_jax.muon(1e-3, weight_decay_mask={"other": True}), MATRIX)
    with pytest.raises(ValueError, match=f"muon_jax.recipes.keller: {said}"):
        init(recipes.keller(1e-3, weight_decay_mask={"other": True}), MATRIX)


@pytest.mark.parametrize("shape", [(4, 6), (2, 2, 4, 6)])
def test_matrices_have_one_batch_axis(shape):
    said = rf"newton_schulz: the matrices have shape {re.escape(str(shape))}\. Give \(batch, rows"
    with pytest.raises(ValueError, match=said):
        muon_jax.newton_schulz()(jnp.ones(shape))


@pytest.mark.parametrize(("call", "start"), BAD_TYPES)
def test_bad_types(call, start):
    with pytest.raises(TypeError, match="muon_jax") as caught:
        call()
    check(str(caught.value), start)


@pytest.mark.parametrize(
    "call", [lambda: muon_jax.newton_schulz("muon"), lambda: muon_jax.newton_schulz("standard")]
)
def test_an_unknown_schedule_lists_the_known_ones(call):
    with pytest.raises(ValueError, match=r"choose one of 'fast', 'accurate', 'minimax', 'keller'"):
        call()


@pytest.mark.parametrize(
    ("call", "tx", "dtype"),
    [
        ("scale_by_muon", muon_jax.scale_by_muon(), jnp.int32),
        ("scale_by_muon", muon_jax.scale_by_muon(), jnp.complex64),
        ("muon", muon_jax.muon(1.0), jnp.int32),
    ],
)
def test_only_real_floating_point_leaves_are_trained(call, tx, dtype):
    refusal = rf"^muon_jax\.{call}: .*steps/kernel.*{dtype.__name__}"
    with pytest.raises(TypeError, match=refusal):
        tx.init({"steps": {"kernel": jnp.ones((2, 2), dtype)}})


def test_a_schedule_of_momentum_and_a_traced_value_are_not_checked_early():
    muon_jax.scale_by_muon(momentum=optax.constant_schedule(0.9))
    muon_jax.scale_by_muon(momentum=jnp.asarray(0.9))
    assert muon_jax.muon(optax.constant_schedule(1.0)).init(MATRIX)
