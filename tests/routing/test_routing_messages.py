"""Errors for trees and rules name the call, the path, and a remedy that works."""

import re

import jax
import jax.numpy as jnp
import pytest
from routes import array, tree_of

import muon_jax
from muon_jax._checks import named
from muon_jax.routing._route import check_labels, route
from muon_jax.routing._rule import Rule
from muon_jax.views._matrix_axes import MatrixAxes


def message_of(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    return str(caught.value)


COMPLEX = {"modes": {"kernel": array(4, 8, dtype=jnp.complex64)}}
AMBIGUOUS = tree_of({"mixer/0/mix": (2, 3, 4), "mixer/1/mix": (2, 3, 4)})
CALLS = {
    "route": named("route")(route),
    "label_params": muon_jax.label_params,
    "matrix_axes": muon_jax.matrix_axes,
    "muon": lambda params, **options: muon_jax.muon(0.1, **options).init(params),
}
REFUSED = {
    # name: (tree, rules, kind of error, words of the message)
    "no arrays": ({"nothing": None}, [], ValueError, "has no arrays"),
    "no array": ({"act": "gelu"}, [], TypeError, "'act' is a str, not an array"),
    "integers": ({"ids": array(3, dtype=jnp.int32)}, [], TypeError, "'ids' is of dtype int32"),
    "complex": (COMPLEX, [], TypeError, "'modes/kernel' has dtype complex64"),
    "ambiguous": (AMBIGUOUS, [], ValueError, "mixer/0/mix (2, 3, 4), mixer/1/mix"),
    "view that does not fit": (
        tree_of({"up": (4, 6)}),
        [Rule("*", MatrixAxes(0, 2))],
        ValueError,
        "does not fit 'up' of shape (4, 6)",
    ),
    "no rule": (AMBIGUOUS, ["*"], TypeError, "rules holds '*'"),
    "a rule, not a list": (AMBIGUOUS, Rule("*", "adamw"), TypeError, "Put it in a list"),
    "pattern that fits nothing": (
        tree_of({"up/kernel": (4, 6), "down/kernel": (6, 4)}),
        [Rule("*/kernel", MatrixAxes(0, 1)), Rule("*/up/kernal", "adamw")],
        ValueError,
        "no parameter fits the pattern '*/up/kernal' of rules. The nearest paths are 'up/kernel', ",
    ),
}


@pytest.mark.parametrize(("params", "rules", "kind", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("call", CALLS)
def test_an_error_names_the_call_and_the_argument(call, params, rules, kind, words):
    message = message_of(kind, CALLS[call], params, rules=rules)
    assert message.startswith(f"muon_jax.{call}: ")
    assert words in message


@pytest.mark.parametrize("value", [jnp.float32, type("Sized", (), {"shape": (2, 3)})()])
def test_an_array_has_both_shape_and_dtype(value):
    message = message_of(TypeError, muon_jax.label_params, {"layer": {"static": value}})
    assert "'layer/static' is " in message
    assert "not an array of floating-point numbers" in message


@pytest.mark.parametrize(
    "params",
    [COMPLEX, array(5, 5, dtype=jnp.complex64), (array(2), array(5, 5, dtype=jnp.complex64))],
    ids=["named", "the whole tree", "in a tuple"],
)
def test_the_rule_for_a_complex_matrix_works(params):
    message = message_of(TypeError, muon_jax.label_params, params)
    (line,) = re.findall(r"rules=(\[.*\])", message)
    labels = muon_jax.label_params(params, rules=eval(line, vars(muon_jax)))
    assert set(jax.tree.leaves(labels)) == {"adamw"}


@pytest.mark.parametrize("path", ["mix", "query_key_value/kernel"])
def test_the_fallback_for_what_is_ambiguous_says_why(path):
    params = tree_of({path: (2, 3, 4) if path == "mix" else (8, 24)})
    (found,) = jax.tree.leaves(route(params, ambiguous="fallback"))
    assert (found.label, found.axes, found.rule) == ("adamw", None, "ambiguous")
    assert found.why


def with_labels(count):
    rules = [Rule(f"{index}", f"mine {index}") for index in range(count)]
    routes = route([jnp.ones(2)] * count, rules=rules)
    check_labels(routes, {"adamw": None})


def with_ambiguous(count):
    return muon_jax.label_params(tree_of({f"mix{index}": (2, 3, 4) for index in range(count)}))


@pytest.mark.parametrize(
    ("call", "shown"), [(with_ambiguous, "mix3 (2, 3, 4)"), (with_labels, "'mine 3'")]
)
def test_four_are_named_and_the_rest_counted(call, shown):
    assert f"{shown} and 1 more" in message_of(ValueError, call, 5)
    assert "more" not in message_of(ValueError, call, 4)


def test_an_unknown_label_is_told_the_known_ones():
    params, rules = {"up": jnp.ones((3, 4))}, [Rule("up", "frozzen")]
    others = {"frozen": muon_jax.momentum_rms(0.1)}
    message = message_of(
        ValueError, muon_jax.muon(0.1, rules=rules, transforms=others).init, params
    )
    assert message.startswith("muon_jax.muon: rules give 'up' the label 'frozzen'")
    assert all(repr(label) in message for label in ("muon", "adamw", "frozen"))
