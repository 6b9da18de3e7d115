"""`explain` describes what `muon` does, in numbers and in a table."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
from architectures import ARCHITECTURES
from routes import tree_of

from muon_jax import (
    adamw,
    muon,
    muon_clip,
    quantize_state,
    recipes,
    scale_by_path,
    skip_nonfinite,
)
from muon_jax.explain import explain as explained_by
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.polar._svd import polar_by_svd
from muon_jax.routing._rule import Rule
from muon_jax.views._matrix_axes import MatrixAxes

PARAMS = tree_of(
    {
        "wte/embedding": (11, 4),
        "blocks/0/attn/qkv/kernel": (4, 12),
        "blocks/1/attn/qkv/kernel": (4, 12),
        "blocks/0/mlp/up/kernel": (4, 16),
        "blocks/1/mlp/up/kernel": (4, 16),
        "norm/scale": (4,),
    }
)


def explain(params, **options):
    return explained_by(params, muon(1.0, **options))


def by_path(explanation):
    return {leaf.path: leaf for leaf in explanation.leaves}


def test_a_matrix_is_told_in_full():
    leaf = by_path(explain(PARAMS, weight_decay=0.3))["blocks/0/attn/qkv/kernel"]
    assert (leaf.label, leaf.rule, leaf.axes) == ("muon", "fused attention", MatrixAxes(0, 1, 3))
    assert leaf.matrices == ((3, 4, 4),)
    assert leaf.scale == (0.4,)
    assert leaf.weight_decay == 0.3
    assert leaf.flops == 3 * newton_schulz().flops(4, 4)
    assert leaf.state_bytes == 4 * 12 * 4
    assert (leaf.shape, leaf.dtype, leaf.size, leaf.sharding) == ((4, 12), "float32", 48, None)


def test_the_rest_is_told_too():
    leaf = by_path(explain(PARAMS))["wte/embedding"]
    assert (leaf.label, leaf.rule, leaf.axes, leaf.matrices) == ("adamw", "embedding", None, ())
    assert (leaf.flops, leaf.state_bytes) == (0, 2 * 11 * 4 * 4)
    assert (leaf.weight_decay, leaf.learning_rate_multiplier) == (0.0, 20.0)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("outputs", (2.5, 1.0, 20.0)), ("spectral", (1.0, 1.0, 8.0)), ("none", (1.0, 1.0, 1.0))],
)
def test_the_scale_decides_the_learning_rates_of_adamw(scale, expected):
    leaves = by_path(explain(PARAMS, scale=scale))
    paths = "norm/scale", "blocks/0/mlp/up/kernel", "wte/embedding"
    assert tuple(leaves[path].learning_rate_multiplier for path in paths) == expected


def test_totals_are_the_sums():
    explanation = explain(PARAMS)
    assert explanation.parameters == {"muon": 2 * 48 + 2 * 64, "adamw": 44 + 4}
    assert explanation.flops == sum(leaf.flops or 0 for leaf in explanation.leaves)
    assert explanation.state_bytes == 4 * (2 * 48 + 2 * 64 + 2 * 48)
    assert explanation.adamw_state_bytes == 8 * (2 * 48 + 2 * 64 + 48)


FROZEN = {
    "rules": [Rule("*/up/kernel", "frozen")],
    "transforms": {"frozen": optax.set_to_zero()},
}


class Counted:
    """An orthogonalizer whose `flops` is a number, not a function."""

    flops = 12

    def __call__(self, matrices):
        return matrices


OPTIONS = {
    "named scale": ({"scale": "spectral"}, "scale", (2.0,)),
    "own scale": ({"scale": lambda rows, cols: rows / cols}, "scale", (0.25,)),
    "measured scale": ({"scale": "update_norm"}, "scale", (None,)),
    "momentum in bfloat16": ({"momentum_dtype": jnp.bfloat16}, "state_bytes", 2 * 64),
    "orthogonalizer without cost": ({"orthogonalizer": polar_by_svd()}, "flops", None),
    "scheduled decay": (
        {"weight_decay": optax.constant_schedule(0.1)},
        "weight_decay",
        "schedule",
    ),
    "decay by a tree": (
        {"weight_decay_mask": jax.tree.map(lambda _: False, PARAMS)},
        "weight_decay",
        0.0,
    ),
    "decay by a function": (
        {"weight_decay_mask": lambda params: jax.tree.map(lambda leaf: leaf.ndim < 2, params)},
        "weight_decay",
        0.0,
    ),
    "own rule": (FROZEN, "label", "frozen"),
    "own rule, own decay": (FROZEN, "weight_decay", None),
    "own rule, no state": (FROZEN, "state_bytes", 0),
    "own rule, own state": (
        {**FROZEN, "transforms": {"frozen": optax.sgd(0.1, momentum=0.9)}},
        "state_bytes",
        4 * 64,
    ),
    "flops that are a number": ({"orthogonalizer": Counted()}, "flops", None),
}


@pytest.mark.parametrize(("options", "name", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_options(options, name, expected):
    assert getattr(by_path(explain(PARAMS, **options))["blocks/0/mlp/up/kernel"], name) == expected


def test_a_mask_of_the_whole_tree_makes_both_optimizers_decay():
    leaves = by_path(explain(PARAMS, weight_decay=0.3, weight_decay_mask=True))
    assert leaves["norm/scale"].weight_decay == 0.3
    assert leaves["blocks/0/mlp/up/kernel"].weight_decay == 0.3


def test_another_fallback_has_its_own_state_and_a_decay_that_is_not_known():
    leaf = by_path(explain(PARAMS, fallback=optax.sgd(0.1, momentum=0.9)))["wte/embedding"]
    assert (leaf.label, leaf.weight_decay, leaf.learning_rate_multiplier) == ("adamw", None, 1.0)
    assert leaf.state_bytes == 11 * 4 * 4


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "skip_nonfinite": skip_nonfinite,
    "quantize_state": lambda tx: quantize_state(tx, smallest=10**6),
    "masked": lambda tx: optax.masked(tx, True),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_optimizer_itself_is_asked_inside_any_wrapper(wrap):
    found = explained_by(PARAMS, wrap(muon(1.0, scale="keller", weight_decay=0.3)))
    plain = explain(PARAMS, scale="keller", weight_decay=0.3)
    for leaf, expected in zip(found.leaves, plain.leaves, strict=True):
        assert leaf.state_bytes >= expected.state_bytes
        assert dataclasses.replace(leaf, state_bytes=expected.state_bytes) == expected


@pytest.mark.parametrize("optimizer", [muon, recipes.keller, recipes.moonlight, recipes.optax])
def test_injected_hyperparameters_are_shown_as_such(optimizer):
    injected = optax.inject_hyperparams(optimizer)(learning_rate=0.1, weight_decay=0.1)
    leaf = by_path(explained_by(PARAMS, injected))["blocks/0/mlp/up/kernel"]
    assert (leaf.label, leaf.weight_decay) == ("muon", "injected")
    again = by_path(explained_by(PARAMS, injected))["blocks/0/mlp/up/kernel"]
    assert leaf == again


def test_recipes_and_their_parts_are_told():
    keller = by_path(explained_by(PARAMS, recipes.keller(0.02)))["blocks/0/mlp/up/kernel"]
    assert (keller.weight_decay, keller.scale) == (0.0, (2.0,))
    every_2d = by_path(explained_by(PARAMS, recipes.optax(0.02)))["wte/embedding"]
    assert (every_2d.label, every_2d.rule) == ("muon", "rank")
    attention = tree_of({f"attn/{name}/kernel": (8, 2, 4) for name in ("query", "key")})
    clipped = explained_by(attention, muon_clip(1e-3))
    assert {leaf.label for leaf in clipped.leaves} == {"muon"}


def test_parameters_of_another_optimizer_have_its_state():
    labels = {"wte": "theirs", "blocks": "ours", "norm": "theirs"}
    both = optax.multi_transform({"ours": muon(1.0), "theirs": optax.adam(0.1)}, labels)
    leaves = by_path(explained_by(PARAMS, both))
    assert (leaves["wte/embedding"].label, leaves["wte/embedding"].state_bytes) == ("other", 352)
    assert leaves["blocks/0/mlp/up/kernel"].label == "muon"


def test_factors_by_path_multiply_those_of_muon():
    tx = optax.chain(muon(1.0), scale_by_path({"wte/*": 0.5}))
    leaves = by_path(explained_by(PARAMS, tx))
    assert leaves["wte/embedding"].learning_rate_multiplier == 10.0
    assert leaves["norm/scale"].learning_rate_multiplier == 2.5


def test_parameters_that_differ_in_a_number_share_a_row():
    lines = str(explain(PARAMS)).splitlines()
    (row,) = [line.split() for line in lines if "qkv" in line]
    assert row[:6] == ["blocks/*/attn/qkv/kernel", "2", "4x12", "muon", "6", "of"]
    assert "272 parameters: 82.4% to muon, 17.6% to adamw" in lines
    assert "fused attention: query, key and value are each a matrix" in lines


def test_a_number_that_does_not_differ_is_kept():
    params = tree_of({"h/0/fc1/kernel": (4, 4), "h/1/fc1/kernel": (4, 4), "h/0/fc2/kernel": (4, 6)})
    text = str(explain(params))
    assert "h/*/fc1/kernel" in text
    assert "h/0/fc2/kernel" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_folds_to_the_width_of_a_terminal(width):
    out = io.StringIO()
    rich.console.Console(file=out, width=width).print(explain(PARAMS))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = set(str(explain(PARAMS)).split())
    unfolded = {word for word in words if "/" not in word and "--" not in word}
    assert unfolded <= set(out.getvalue().split())


def test_notebooks_get_html():
    html = explain({"<b>": {"kernel": jax.ShapeDtypeStruct((2, 3), "float32")}})._repr_html_()
    assert "<table>" in html
    assert "&lt;b&gt;/kernel" in html
    assert "<b>" not in html


def test_to_dict_is_ready_for_json():
    explanation = explain(PARAMS)
    told = json.loads(json.dumps(explanation.to_dict()))
    assert told == explanation.to_dict()
    assert told["flops"] == explanation.flops
    assert {leaf["axes"] for leaf in told["leaves"]} == {
        None,
        "MatrixAxes(rows=0, cols=1)",
        "MatrixAxes(rows=0, cols=1, split=3)",
    }


def test_a_trillion_parameters_need_no_memory():
    params = tree_of(
        {f"layers/{layer}/mlp/experts/up_proj/kernel": (384, 7168, 65536) for layer in range(6)}
    )
    text = str(explain(params))
    assert "1.08 T parameters: 100.0% to muon" in text
    assert "2304 matrices of 1 shape:" in text


def test_a_partition_is_shown():
    mesh = jax.make_mesh((1,), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("fsdp", None))
    params = {"kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=sharding)}
    assert "fsdp" in (explain(params).leaves[0].sharding or "")
    assert "sharding" in str(explain(params)).splitlines()[0]
    assert "sharding" not in str(explain(PARAMS)).splitlines()[0]


def test_nothing_to_explain_in_a_masked_tree():
    explanation = explain({"kernel": optax.MaskedNode()})
    assert explanation.leaves == ()
    assert "0 parameters" in str(explanation)


REFUSED = {
    "ambiguous": (lambda: explain(tree_of({"a": (2, 3, 4)})), ValueError, "muon: a (2, 3, 4)"),
    "another library's": (
        lambda: explained_by(PARAMS, optax.adam(0.1)),
        ValueError,
        "explain: tx contains no optimizer of muon_jax that routes parameters. Give muon_jax.muon",
    ),
    "AdamW": (lambda: explained_by(PARAMS, adamw(0.1)), ValueError, "Give muon_jax.muon"),
    "a factory": (lambda: explained_by(PARAMS, muon), TypeError, "give an optimizer, such as"),
    "a function in the tree": (
        lambda: explain({"kernel": PARAMS["norm"]["scale"], "activation": abs}),
        TypeError,
        "'activation' is a builtin_function_or_method, not an array",
    ),
}


@pytest.mark.parametrize(("make", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_muon_would_refuse_is_refused(make, kind, words):
    with pytest.raises(kind, match="muon_jax") as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_state_is_as_large_as_it_says(dtype):
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), ARCHITECTURES["GPT-2 (NNX)"]()
    )
    state = jax.tree.leaves(jax.eval_shape(muon(1e-3, momentum_dtype="bfloat16").init, params))
    moments = sum(leaf.size * leaf.dtype.itemsize for leaf in state if leaf.ndim)
    assert explain(params, momentum_dtype="bfloat16").state_bytes == moments


@pytest.mark.parametrize("name", ["Llama, scanned (NNX)", "GPT (Equinox)", "ResNet (Linen)"])
def test_every_leaf_of_an_architecture_is_told(name):
    params = ARCHITECTURES[name]()
    explanation = explain(params)
    assert [leaf.shape for leaf in explanation.leaves] == [
        leaf.shape for leaf in jax.tree.leaves(params)
    ]
    assert sum(explanation.parameters.values()) == sum(
        int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)
    )
