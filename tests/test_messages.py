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
    (
        lambda: muon_jax.scale_by_muon(momentum=1.5),
        "muon_jax.scale_by_muon(momentum=1.5): give a number in [0, 1).",
    ),
    (
        lambda: muon_jax.scale_by_muon(scale="rms"),
        "muon_jax.scale_by_muon(scale='rms'): choose one of 'outputs', 'match_rms', 'keller', "
        "'spectral', "
        "'none', 'update_norm', muon_jax.hidden_size(width), or a callable of (rows, cols).",
    ),
    (
        lambda: muon_jax.scale_by_muon(chunk_bytes=0),
        "muon_jax.scale_by_muon(chunk_bytes=0): give a whole number of at least 1.",
    ),
    (
        lambda: muon_jax.scale_by_muon(momentum_dtype="float8_e4m3fn"),
        "muon_jax.scale_by_muon(momentum_dtype='float8_e4m3fn'): give float32, bfloat16, float16 "
        "or float64, or None for the parameter's own.",
    ),
    (
        lambda: muon_jax.orthogonalize_tree(MATRIX, chunk_bytes=0),
        "muon_jax.orthogonalize_tree(chunk_bytes=0): give a whole number of at least 1.",
    ),
    (
        lambda: muon_jax.newton_schulz(steps=0),
        "muon_jax.newton_schulz(steps=0): give a whole number of at least 1.",
    ),
    (
        lambda: muon_jax.newton_schulz(dtype="float8"),
        "muon_jax.newton_schulz(dtype='float8'): choose one of 'float32', 'tensorfloat32', "
        "'float16', 'bfloat16'.",
    ),
    (
        lambda: muon_jax.newton_schulz(form="gram"),
        "muon_jax.newton_schulz(form='gram'): choose one of 'auto', 'direct'.",
    ),
    (
        lambda: muon_jax.newton_schulz("fast", steps=7),
        "muon_jax.newton_schulz(steps=7): 'fast' has 3 steps; leave steps out, or choose "
        "'minimax'.",
    ),
    (
        lambda: muon_jax.newton_schulz("cans", steps=7),
        "muon_jax.newton_schulz(steps=7): 'cans' has 5 rows and no rule beyond them; take at most "
        "5.",
    ),
    (
        lambda: muon_jax.newton_schulz([(1.0, float("nan"))]),
        "muon_jax.newton_schulz(coefficients=[(1.0, nan)]): give a name, one row of 2 to 5 finite "
        "numbers, or a sequence of such rows.",
    ),
    (
        lambda: muon_jax.inverse_sqrt(0),
        "muon_jax.inverse_sqrt(steps=0): give a whole number of at least 1.",
    ),
    (
        lambda: muon_jax.polar_to(1e-9),
        "muon_jax.polar_to(tolerance=1e-09): give a number in [1e-05, 1), which float32 can reach.",
    ),
    (
        lambda: muon_jax.polar_to(1.5),
        "muon_jax.polar_to(tolerance=1.5): give a number in [1e-05, 1), which float32 can reach.",
    ),
    (
        lambda: muon_jax.polar_to(max_steps=0),
        "muon_jax.polar_to(max_steps=0): give a whole number of at least 1.",
    ),
    (
        lambda: muon_jax.newton_schulz(normalization=["schatten"]),
        "muon_jax.newton_schulz(normalization=['schatten']): choose one of 'schatten', "
        "'frobenius'.",
    ),
    (
        lambda: muon_jax.newton_schulz().plan(0, 4),
        "muon_jax.newton_schulz().plan(rows=0): give a whole number of at least 1.",
    ),
    (
        lambda: recipes.procrustes(momentum=1.5),
        "muon_jax.recipes.procrustes(momentum=1.5): give a number in [0, 1).",
    ),
    (
        lambda: recipes.keller(adam_learning_rate=-1.0),
        "muon_jax.recipes.keller(adam_learning_rate=-1.0): give a finite number of at least 0.",
    ),
    (
        lambda: recipes.torch(adam_weight_decay=-1.0),
        "muon_jax.recipes.torch(adam_weight_decay=-1.0): give a finite number of at least 0.",
    ),
    (
        lambda: recipes.optax(0.1, adam_learning_rate=-1.0),
        "muon_jax.recipes.optax(adam_learning_rate=-1.0): give a finite number of at least 0.",
    ),
    (
        lambda: muon_jax.muon(1.0, ambiguous="fall"),
        "muon_jax.muon(ambiguous='fall'): choose one of 'error', 'fallback'.",
    ),
    (
        lambda: muon_jax.muon(1.0, rules=[muon_jax.Rule("a", "frozen")]).init({"a": jnp.ones(2)}),
        "muon_jax.muon: rules give 'a' the label 'frozen', but the known labels are 'adamw', "
        "'muon'. Give an optimizer for each, such as transforms={'frozen': optax.set_to_zero()}.",
    ),
    (
        lambda: muon_jax.clip_qk(100.0, {}),
        "muon_jax.clip_qk(targets={}): give {layer path: QKTarget(...)}, or None.",
    ),
    (
        lambda: muon_jax.hidden_size(0),
        "muon_jax.hidden_size(width=0): give a whole number of at least 1.",
    ),
    (
        lambda: muon_jax.muon(-1.0),
        "muon_jax.muon(learning_rate=-1.0): give a finite number of at least 0.",
    ),
    (
        lambda: muon_jax.muon(1.0, weight_decay=-0.1),
        "muon_jax.muon(weight_decay=-0.1): give a finite number of at least 0.",
    ),
    (
        lambda: muon_jax.muon(1.0, fallback=optax.sgd(1.0), fallback_learning_rate=0.1),
        "muon_jax.muon(fallback_learning_rate=0.1): leave it out and configure the transformation "
        "given as fallback instead.",
    ),
    (
        lambda: muon_jax.muon(1.0, transforms={"adamw": 1}),
        "muon_jax.muon(transforms={'adamw': 1}): give labels of your own, not 'adamw', which is "
        "taken.",
    ),
    (
        lambda: muon_jax.adamw(1.0, b2=1.5),
        "muon_jax.adamw(b2=1.5): give a number in [0, 1).",
    ),
    (
        lambda: muon_jax.scale_by_momentum_rms(momentum=-0.1),
        "muon_jax.scale_by_momentum_rms(momentum=-0.1): give a number in [0, 1).",
    ),
    (
        lambda: muon_jax.momentum_rms(float("inf")),
        "muon_jax.momentum_rms(learning_rate=inf): give a finite number of at least 0.",
    ),
]

BAD_TYPES = [
    (
        lambda: muon_jax.skip_nonfinite(True),
        "muon_jax.skip_nonfinite(tx=True): give a gradient transformation, such as "
        "optax.set_to_zero().",
    ),
    (
        lambda: muon_jax.muon(1.0, nesterov="yes"),
        "muon_jax.muon(nesterov='yes'): give True or False.",
    ),
    (
        lambda: muon_jax.scale_by_muon(nesterov=1),
        "muon_jax.scale_by_muon(nesterov=1): give True or False.",
    ),
    (
        lambda: muon_jax.muon(1.0, fallback="adam"),
        "muon_jax.muon(fallback='adam'): give a gradient transformation, such as "
        "optax.set_to_zero().",
    ),
    (
        lambda: muon_jax.muon(1.0, transforms={"frozen": 1}),
        "muon_jax.muon(transforms['frozen']=1): give a gradient transformation, such as "
        "optax.set_to_zero().",
    ),
    (
        lambda: muon_jax.muon(1.0, transforms=["frozen"]),
        "muon_jax.muon(transforms=['frozen']): give {label: transformation}, such as "
        '{"frozen": optax.set_to_zero()}.',
    ),
    (
        lambda: muon_jax.muon(1.0, rules=muon_jax.Rule("embed", "adamw")),
        "muon_jax.muon: rules is Rule(pattern='embed', to='adamw', why='a rule of yours', "
        "name='embed'). Put it in a list, rules=[...].",
    ),
    (
        lambda: muon_jax.muon(1.0, rules=["embed"]),
        "muon_jax.muon: rules holds 'embed'. Give muon_jax.Rule values.",
    ),
    (
        lambda: muon_jax.scale_by_muon(orthogonalizer=Unhashable()),
        "muon_jax.scale_by_muon(orthogonalizer=Unhashable()): give a hashable callable, such as a "
        "function or a frozen dataclass.",
    ),
    (
        lambda: muon_jax.scale_by_muon(axes={"a": "muon"}).init({"a": jnp.ones((2, 2))}),
        "muon_jax.scale_by_muon: axes holds 'muon'. Give a MatrixAxes or None for every leaf, as "
        "muon_jax.matrix_axes(params) does.",
    ),
    (
        lambda: muon_jax.polar_to(abs),
        "muon_jax.polar_to(tolerance=<built-in function abs>): give a number.",
    ),
    (
        lambda: muon_jax.newton_schulz().plan(4, 3.5),
        "muon_jax.newton_schulz().plan(cols=3.5): give a whole number of at least 1.",
    ),
    (
        lambda: recipes.optax(1.0, beta=abs),
        "muon_jax.recipes.optax(beta=<built-in function abs>): give a number, and schedule it by "
        "optax.inject_hyperparams(muon_jax.recipes.optax).",
    ),
    (
        lambda: recipes.procrustes(momentum=abs),
        "muon_jax.recipes.procrustes(momentum=<built-in function abs>): give a number, and "
        "schedule it by optax.inject_hyperparams(muon_jax.recipes.procrustes).",
    ),
    (
        lambda: muon_jax.clip_qk(float),
        "muon_jax.clip_qk(threshold=<class 'float'>): give a number, and schedule it by "
        "optax.inject_hyperparams(muon_jax.clip_qk).",
    ),
    (
        lambda: muon_jax.scale_by_momentum_rms(momentum=float),
        "muon_jax.scale_by_momentum_rms(momentum=<class 'float'>): give a number, and schedule it "
        "by optax.inject_hyperparams(muon_jax.scale_by_momentum_rms).",
    ),
    (
        lambda: muon_jax.scale_by_muon(momentum="0.9"),
        "muon_jax.scale_by_muon(momentum='0.9'): give a number or a schedule.",
    ),
    (
        lambda: muon_jax.scale_by_muon(orthogonalizer="svd"),
        "muon_jax.scale_by_muon(orthogonalizer='svd'): give a callable from (batch, rows, cols) "
        "to the same shape, or newton_schulz(...).",
    ),
    (
        lambda: muon_jax.scale_by_muon(momentum_dtype="half a float"),
        "muon_jax.scale_by_muon(momentum_dtype='half a float'): give float32, bfloat16, float16 "
        "or float64, or None for the parameter's own.",
    ),
    *(
        (
            functools.partial(orthogonalizer, jnp.ones((1, 2, 2), jnp.complex64)),
            f"muon_jax.{call}: the matrices are complex64. Give real ones; the polar factor of "
            "A + iB is that of [[A, -B], [B, A]].",
        )
        for call, orthogonalizer in ORTHOGONALIZERS.items()
    ),
    (
        lambda: muon_jax.newton_schulz(steps=2.5),
        "muon_jax.newton_schulz(steps=2.5): give a whole number of at least 1.",
    ),
]

BAD_TREES = [
    (
        lambda: init(
            muon_jax.scale_by_muon(), {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
        ),
        "muon_jax.scale_by_muon: no matrices by the default rules: dense/bias (3,). Use "
        "muon_jax.muon, or optax.multi_transform with muon_jax.label_params, to send them to "
        "another optimizer; or give their views by axes=.",
    ),
    (
        lambda: init(muon_jax.scale_by_muon(), {}),
        "muon_jax.scale_by_muon: the parameters hold no array. Pass the tree to be trained.",
    ),
    (
        lambda: init(
            muon_jax.scale_by_muon(axes=muon_jax.MatrixAxes(0, 2)), {"dense": jnp.ones((2, 3))}
        ),
        "muon_jax.scale_by_muon: MatrixAxes(rows=0, cols=2) does not fit 'dense' of shape (2, 3): "
        "it has no axis 2. Name axes between -2 and 1.",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_VALUES + BAD_TREES)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match="muon_jax") as caught:
        call()
    assert str(caught.value) == message


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


@pytest.mark.parametrize(("call", "message"), BAD_TYPES)
def test_bad_types(call, message):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == message


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
