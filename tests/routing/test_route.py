"""Rules decide the route of every leaf, in trees of any library."""

import collections
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from routes import array, tree_of

import muon_jax
from muon_jax.routing._route import label_params, matrix_axes, route
from muon_jax.routing._rule import Rule
from muon_jax.transforms._scale_by_path import by_leaf
from muon_jax.views._matrix_axes import MatrixAxes


def the_route(path, *shape, **options):
    (found,) = jax.tree.leaves(route(tree_of({path: shape}), **options))
    return found


Pair = collections.namedtuple("Pair", ["kernel", "bias"])


@pytest.mark.parametrize(
    "params",
    [
        {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        freeze({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}),
        Pair(jnp.ones((2, 3)), jnp.ones(3)),
        (jnp.ones((2, 3)), [jnp.ones(3), None, optax.MaskedNode()]),
        nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        eqx.filter(eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.is_inexact_array),
    ],
    ids=["dict", "frozen", "namedtuple", "sequence", "nnx state", "nnx module", "equinox"],
)
def test_any_pytree_keeps_its_structure(params):
    labels = label_params(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    by_shape = {leaf.shape: label for leaf, label in zip(*map(jax.tree.leaves, (params, labels)))}  # noqa: B905
    assert by_shape == {
        (2, 3): "muon",
        **{(size,): "adamw" for size in (2, 3) if (size,) in by_shape},
    }


def test_labels_drive_multi_transform_over_nnx():
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    transform = optax.multi_transform(
        {"muon": optax.sgd(1.0), "adamw": optax.set_to_zero()}, label_params
    )
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = transform.update(ones, transform.init(params), params)
    bias, kernel = jax.tree.leaves(updates)
    assert jnp.array_equal(kernel, -jnp.ones((2, 3)))
    assert not bias.any()


Attention = collections.namedtuple("Attention", ["query", "key", "value", "out"])
Heads = collections.namedtuple("Heads", ["policy", "value"])


def test_a_field_called_value_is_no_box_where_others_stand_beside_it():
    heads = jnp.ones((8, 2, 4))
    attention = Attention(heads, heads, heads, jnp.ones((2, 4, 8)))
    params = {"attn": attention, "core": Heads(jnp.ones((8, 4)), jnp.ones((8, 6)))}
    routes = {found.path: found.axes for found in jax.tree.leaves(route(params))}
    assert routes["attn/value"] == routes["attn/query"] == MatrixAxes(0, (1, 2))
    assert routes["core/value"] == MatrixAxes(0, 1)
    masked = {"core": Heads(optax.MaskedNode(), params["core"].value)}
    assert [found.path for found in jax.tree.leaves(route(masked))] == ["core/value"]
    assert by_leaf(params, {"*/value": 0.1})["attn"].value == 0.1
    boxed = jax.tree.leaves(route(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)))
    assert [found.path for found in boxed] == ["bias", "kernel"]


def test_patterns_are_compared_without_the_tilde_of_haiku():
    path, view = "transformer/~/mixer/core", MatrixAxes(rows=-2, cols=-1)
    assert the_route(path, 5, 8, 6, rules=[Rule(path, view)]).axes == view
    assert the_route("~/core", 5, 8, 6, rules=[Rule("~/core", view)]).axes == view
    assert by_leaf({"a/~/b": {"w": 1.0}}, {"a/~/b/w": 0.1}) == {"a/~/b": {"w": 0.1}}


def test_your_rules_come_first():
    view = MatrixAxes(rows=0, cols=1, split=2)
    rules = [Rule("*/gate_up/kernel", view), Rule("*/{up,down}/kernel", "frozen", why="tuned")]
    shapes = {"mlp/gate_up": (4, 16), "gate_up": (4, 16), "mlp/down": (16, 4), "other": (16, 4)}
    params = tree_of({f"{layer}/kernel": shape for layer, shape in shapes.items()})
    routes = {found.path: found for found in jax.tree.leaves(route(params, rules=rules))}
    assert routes["mlp/gate_up/kernel"].axes == routes["gate_up/kernel"].axes == view
    frozen = routes["mlp/down/kernel"]
    assert (frozen.label, frozen.axes, frozen.why) == ("frozen", None, "tuned")
    assert frozen.rule == "*/{up,down}/kernel"
    assert routes["other/kernel"].axes == MatrixAxes(0, 1)


def test_a_rule_may_decide_by_the_leaf():
    def wide(leaf):
        return "adamw" if leaf.shape[-1] > 1000 else None

    rules = [Rule("*/kernel", wide, name="wide", why="too wide")]
    assert the_route("a/kernel", 8, 1001, rules=rules).rule == "wide"
    assert the_route("a/kernel", 8, 1000, rules=rules).rule == "matrix"


PATTERNS = {
    # pattern: (paths that fit, paths that do not)
    "*/kernel": (["kernel", "a/kernel", "a/b/Kernel"], ["akernel", "kernel/a"]),
    "blocks/*/kernel": (["blocks/kernel", "blocks/0/mlp/kernel"], ["a/blocks/0/kernel"]),
    "encoder/*": (["encoder/0/kernel"], ["encoder", "a/encoder/b"]),
    "*/layer?/*_proj/w": (["layer1/q_proj/w"], ["layer12/q_proj/w", "layer1/a/q_proj_2/w"]),
    "*/{query,key}/kernel": (["attn/key/kernel"], ["attn/value/kernel"]),
    "model.*.weight": (["model/layers/0/weight", "model.layers.0.weight"], ["model/weight/a"]),
    "*": (["anything", "at/all"], []),
}


@pytest.mark.parametrize(("pattern", "paths"), PATTERNS.items(), ids=PATTERNS)
def test_patterns(pattern, paths):
    fitting, others = paths
    assert {path for path in fitting + others if Rule(pattern, "mine").fits(path)} == {*fitting}
    assert [the_route(path, 4, 8, rules=[Rule(pattern, "mine")]).label for path in fitting] == [
        "mine" for _ in fitting
    ]


UNUSABLE = {
    # name: (call, kind of error, words of the message)
    "no pattern": (lambda: Rule("", "adamw"), ValueError, "Rule(pattern=''): give a pattern"),
    **{
        f"braces in {pattern}": (
            lambda pattern=pattern: Rule(pattern, "adamw"),
            ValueError,
            f"Rule(pattern={pattern!r}): open and close every brace",
        )
        for pattern in ("*/{a,b", "}a{", "a}", "{a}}")
    },
    "no view": (lambda: Rule("*", "muon"), ValueError, "Rule(to='muon'): give the view"),
    "no outcome": (lambda: Rule("*", cast(Any, 3)), TypeError, "Rule(to=3): give a MatrixAxes"),
    "no outcome of a function": (
        lambda: label_params({"a": array(2, 2)}, rules=[Rule("*", lambda leaf: "muon")]),
        TypeError,
        "Rule(to='muon'): let the function return a MatrixAxes",
    ),
    "no choice": (
        lambda: matrix_axes({"a": array(2, 2)}, ambiguous=cast(Any, "skip")),
        ValueError,
        "matrix_axes(ambiguous='skip'): choose one of 'error', 'fallback'",
    ),
}


@pytest.mark.parametrize(("make", "kind", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_arguments_are_refused(make, kind, words):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value).startswith("muon_jax.")
    assert words in str(caught.value)


def test_a_view_that_does_not_fit_is_refused_by_path():
    with pytest.raises(ValueError, match=r"does not fit 'dense/kernel' of shape \(4, 6\)"):
        the_route("dense/kernel", 4, 6, rules=[Rule("*/kernel", MatrixAxes(0, 1, split=4))])


def test_a_complex_array_may_train_elsewhere():
    params = {"modes": {"kernel": jnp.ones((4, 8), jnp.complex64)}, "up": jnp.ones((4, 8))}
    tx = muon_jax.muon(0.1, rules=[Rule("modes/kernel", "adamw")])
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["modes"]["kernel"].dtype == jnp.complex64


def test_complex_parameters_are_routed_alike_in_parts():
    params = {
        "embed": {"embedding": jnp.ones((50, 8), jnp.complex64)},
        "up": {"kernel": jnp.ones((8, 16), jnp.complex64)},
        "head": {"kernel": jnp.ones((16, 50), jnp.complex64)},
    }
    seen = []
    spy = optax.GradientTransformation(
        lambda parts: seen.append(label_params(parts)) or (), lambda updates, state, _: state
    )
    optax.contrib.split_real_and_imaginary(spy).init(params)
    (labels,) = seen
    for layer, label in (("embed", "adamw"), ("up", "muon"), ("head", "adamw")):
        assert set(jax.tree.leaves(labels[layer])) == {label}


def test_paths_that_differ_in_a_dot_are_two_parameters():
    params = {"a.up": {"kernel": array(4, 6)}, "a": {"up": {"kernel": array(3, 4, 6)}}}
    routes = {
        each.path: each.shape for each in jax.tree.leaves(route(params, ambiguous="fallback"))
    }
    assert routes == {"a.up/kernel": (4, 6), "a/up/kernel": (3, 4, 6)}


def test_axes_may_be_numpy_integers():
    rows, cols = np.int64(0), np.arange(1, 3)
    assert MatrixAxes(rows, tuple(cols)) == MatrixAxes(0, (1, 2))
