"""`explain` with a loss: routes by name and by the loss, and every difference marked."""

import dataclasses
import io
import json
import warnings

import jax.numpy as jnp
import optax
import pytest
import rich.console
from flax import nnx
from traces import array, cross_entropy

import muon_jax
from muon_jax import MatrixAxes, Rule, muon

PARAMS = {
    "table": array(20, 8),
    "tower": {"odd": array(8, 2, 3), "b": array(2, 3)},
    "depthwise": array(6, 6),
    "mix": array(6, 6),
    "w": array(6, 30),
    "waves": {"kernel": array(6, 6)},
    "spare": {"kernel": array(4, 3)},
}
TOKENS = array(2, 5, dtype="int32")
DIFFERENT = {"tower/odd", "depthwise", "w"}


def loss(params, tokens):
    x = jnp.einsum("btd,dhk->bthk", params["table"][tokens], params["tower"]["odd"])
    x = (x + params["tower"]["b"][None, None]).reshape(*tokens.shape, 6)
    x = jnp.tanh(x @ params["depthwise"]) @ params["mix"]
    x = x @ jnp.fft.fft(params["waves"]["kernel"]).real
    return cross_entropy(x @ params["w"], tokens)


def explain(tx=None, params=PARAMS, loss=loss, args=(TOKENS,)):
    return muon_jax.explain(params, tx or muon(1.0, ambiguous="fallback"), loss=loss, args=args)


def by_path(explanation):
    return {leaf.path: leaf for leaf in explanation.leaves}


EXPLAINED = explain()


def test_every_difference_is_marked_and_nothing_else():
    leaves = by_path(EXPLAINED)
    assert {path for path, leaf in leaves.items() if leaf.differs} == DIFFERENT
    assert {leaf.path for leaf in EXPLAINED.differences} == DIFFERENT
    wrong, silent = leaves["depthwise"], leaves["tower/odd"]
    assert (wrong.label, wrong.rule) == ("adamw", "depthwise convolution")
    assert (wrong.traced.rule, wrong.traced.axes) == ("matrix", MatrixAxes(0, 1))
    assert (silent.rule, silent.traced.axes) == ("ambiguous", MatrixAxes(0, (1, 2)))
    head = leaves["w"]
    assert (head.label, head.traced.rule, head.traced.axes) == ("muon", "logits", None)


@pytest.mark.parametrize(
    ("path", "why"), [("waves/kernel", "goes through fft"), ("spare/kernel", "never uses it")]
)
def test_what_the_loss_does_not_tell_is_said_and_is_no_difference(path, why):
    leaf = by_path(EXPLAINED)[path]
    assert not leaf.traced.read
    assert not leaf.differs
    assert why in leaf.traced.why
    assert f"not read: {leaf.traced.why}" in str(EXPLAINED).splitlines()


def cells(explanation):
    """Returns the column for the loss, by parameter."""
    table = explanation.table()
    column = table.names.index("by the loss")
    return {row[0]: row[column] for row in table.rows}


def test_the_table_shows_both_side_by_side():
    assert cells(EXPLAINED) == {
        "depthwise": "!= matrix 0 -> 1",
        "mix": "matrix",
        "spare/kernel": "not read",
        "table": "lookup table",
        "tower/b": "elementwise",
        "tower/odd": "!= matrix 0 -> 1,2",
        "w": "!= logits",
        "waves/kernel": "not read",
    }
    lines = str(EXPLAINED).splitlines()
    assert "read from the loss: 6 of 8 parameters; 3 of them marked != as different" in lines
    reason = by_path(EXPLAINED)["w"].traced.why
    assert f"!= logits, to adamw: {reason}" in lines


def test_layers_that_differ_in_a_number_still_share_a_row():
    params = {str(layer): {"kernel": array(6, 6)} for layer in range(3)}

    def deep(params, x):
        for layer in params.values():
            x = jnp.tanh(x @ layer["kernel"])
        return x.sum()

    found = explain(params=params, loss=deep, args=(array(2, 6),))
    assert cells(found) == {"*/kernel": "matrix", "2/kernel": "last layer"}


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_table_folds(width):
    out = io.StringIO()
    rich.console.Console(file=out, width=width).print(EXPLAINED)
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert {"!=", "logits"} <= set(out.getvalue().split())
    assert "!= logits" in EXPLAINED._repr_html_()


def test_json_has_what_the_loss_tells():
    told = EXPLAINED.to_dict()
    assert json.loads(json.dumps(told)) == told
    leaves = {leaf["path"]: leaf for leaf in told["leaves"]}
    assert leaves["tower/odd"]["differs"] is True
    assert leaves["tower/odd"]["traced"]["axes"] == "MatrixAxes(rows=0, cols=(1, 2))"
    assert leaves["spare/kernel"]["traced"]["read"] is False
    assert leaves["table"]["traced"]["rule"] == "lookup table"


def test_without_a_loss_nothing_is_said_of_one():
    plain = muon_jax.explain(PARAMS, muon(1.0, ambiguous="fallback"))
    assert "loss" not in str(plain)
    assert plain.differences == ()
    bare = [dataclasses.replace(leaf, traced=None, differs=False) for leaf in EXPLAINED.leaves]
    assert list(plain.leaves) == bare
    assert {leaf["traced"] for leaf in plain.to_dict()["leaves"]} == {None}


def test_an_optimizer_with_the_routes_of_the_loss_does_not_differ():
    with pytest.warns(UserWarning, match="never uses"):
        traced = muon_jax.trace_axes(loss, PARAMS, TOKENS)
    found = explain(muon(1.0, axes=traced))
    assert found.differences == ()
    assert "6 of 8 parameters; none of them differs" in str(found)


def test_rules_of_the_user_are_compared_but_labels_of_theirs_are_not():
    rules = [Rule("w", "adamw"), Rule("depthwise", "frozen"), Rule("mix", MatrixAxes(1, 0))]
    tx = muon(1.0, ambiguous="fallback", rules=rules, transforms={"frozen": optax.set_to_zero()})
    assert {leaf.path for leaf in explain(tx).differences} == {"tower/odd", "mix"}


def test_parameters_of_another_optimizer_are_not_compared():
    labels = {**dict.fromkeys(PARAMS, "ours"), "depthwise": "theirs", "tower": "theirs"}
    tx = optax.multi_transform({"ours": muon(1.0), "theirs": optax.sgd(0.1)}, labels)
    found = explain(tx)
    assert {leaf.path for leaf in found.differences} == {"w"}
    assert cells(found)["depthwise"] == "matrix"


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.fc = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.norm(x))


def test_a_module_of_nnx_serves_as_it_is():
    model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(
            muon(1.0),
            model,
            lambda model, x, labels: cross_entropy(model(x), labels),
            (array(2, 8), array(2, dtype="int32")),
        )
    alone = muon_jax.explain(nnx.state(model, nnx.Param), muon(1.0))
    assert [leaf.path for leaf in found.leaves] == [leaf.path for leaf in alone.leaves]
    assert {leaf.path for leaf in found.differences} == {"fc/kernel"}
    assert muon_jax.explain(model, muon(1.0)) == alone


BAD = {
    "no loss": (
        {"loss": None},
        ValueError,
        "muon_jax.explain: args are given without a loss. Give loss=..., or leave args out.",
    ),
    "an array for args": (
        {"args": TOKENS},
        TypeError,
        "muon_jax.explain(args=ShapeDtypeStruct(shape=(2, 5), dtype=int32)): give a tuple of "
        "the arguments of the loss after the parameters.",
    ),
    "no function": (
        {"loss": "loss"},
        TypeError,
        "muon_jax.explain(loss='loss'): give a function of the parameters.",
    ),
    "arguments that do not fit": (
        {"args": ()},
        TypeError,
        "muon_jax.explain: the loss cannot be traced, TypeError: missing a required argument: "
        "'tokens'. Give it the arguments with which jax.grad(loss) runs; strings, numbers and "
        "functions are held fixed, arrays are abstract.",
    ),
    "a loss that raises": (
        {"loss": lambda params, tokens: params["missing"]},
        ValueError,
        "muon_jax.explain: the loss cannot be traced, KeyError: 'missing'. Give it",
    ),
}


@pytest.mark.parametrize(("given", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_input(given, kind, message):
    with pytest.raises(kind) as caught:
        explain(**given)
    assert str(caught.value).startswith(message)
