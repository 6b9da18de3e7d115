"""What a refused tree or rule is told: the call, the path, what is there, and the remedy."""

import jax
import jax.numpy as jnp
import optax
import pytest
from routes import array, tree_of

import muon_jax
from muon_jax.routing._route import check_labels, route
from muon_jax.routing._rule import Rule
from muon_jax.views._matrix_axes import MatrixAxes


def message_of(kind, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    return str(caught.value)


NO_ARRAYS = {"nothing": None}
COMPLEX = {"modes": {"kernel": array(4, 8, dtype=jnp.complex64)}}
AMBIGUOUS = tree_of({"mixer/0/mix": (2, 3, 4), "mixer/1/mix": (2, 3, 4)})
MASKED = {"mix": jnp.ones((2, 3, 4)), "bias": optax.MaskedNode()}
READINGS = """:
    Rule("{0}", MatrixAxes(rows=-2, cols=-1))  # 2 of 3 x 4
    Rule("{0}", MatrixAxes(rows=(-3, -2), cols=-1))  # 1 of 6 x 4
    Rule("{0}", MatrixAxes(rows=-3, cols=(-2, -1)))  # 1 of 2 x 12."""

TREES = {
    "no arrays": (
        muon_jax.label_params,
        NO_ARRAYS,
        ValueError,
        "muon_jax.label_params: the tree of parameters has no arrays. Give the model's parameters.",
    ),
    "no array": (
        muon_jax.label_params,
        {"act": "gelu"},
        TypeError,
        "muon_jax.label_params: 'act' is a str, not an array. Give only the arrays that are "
        "trained, such as `nnx.state(model, nnx.Param)` or `eqx.filter(model, "
        "eqx.is_inexact_array)`.",
    ),
    "integers": (
        muon_jax.label_params,
        {"table": {"ids": array(3, dtype=jnp.int32)}},
        TypeError,
        "muon_jax.label_params: 'table/ids' has dtype int32, which has no gradient. Keep it in a "
        "collection that is not trained, or freeze it with `optax.masked`.",
    ),
    "complex": (
        muon_jax.label_params,
        COMPLEX,
        TypeError,
        "muon_jax.label_params: 'modes/kernel' has dtype complex64, but Muon orthogonalises real "
        'matrices. Send it elsewhere, by rules=[Rule("modes/kernel", "adamw")].',
    ),
    "ambiguous": (
        muon_jax.label_params,
        AMBIGUOUS,
        ValueError,
        "muon_jax.label_params: mixer/0/mix (2, 3, 4), mixer/1/mix (2, 3, 4) can be read as "
        "matrices in several ways. Pass the reading that fits in rules=[...], or "
        "ambiguous='fallback' to leave it to AdamW" + READINGS.format("mixer/*/mix"),
    ),
    "ambiguous under a mask": (
        muon_jax.label_params,
        MASKED,
        ValueError,
        "muon_jax.label_params: mix (2, 3, 4) can be read as matrices in several ways. The tree is "
        "masked, which hides shapes that may decide: give axes=muon_jax.matrix_axes(params) of the "
        "whole tree. Or pass the reading that fits in rules=[...], or ambiguous='fallback' to "
        "leave it to AdamW" + READINGS.format("mix"),
    ),
    "a head, if the mask hides none": (
        muon_jax.label_params,
        {"head": {"dense": {"kernel": array(4, 8)}, "out": {"kernel": optax.MaskedNode()}}},
        ValueError,
        "muon_jax.label_params: head/dense/kernel (4, 8) may be a matrix or none. The tree is "
        "masked, which hides shapes that may decide: give axes=muon_jax.matrix_axes(params) of the "
        "whole tree. Or pass the reading that fits in rules=[...], or ambiguous='fallback' to "
        "leave it to AdamW:\n"
        '    Rule("head/dense/kernel", MatrixAxes(rows=-2, cols=-1))  # 1 of 4 x 8.',
    ),
    "ambiguous for muon under a mask": (
        muon_jax.muon(0.1).init,
        MASKED,
        ValueError,
        "muon_jax.muon: mix (2, 3, 4) can be read as matrices in several ways. The tree is masked, "
        "which hides shapes that may decide: freeze by rules, with others={'frozen': "
        "optax.set_to_zero()}, instead of masking. Or pass the reading that fits in rules=[...], "
        "or ambiguous='fallback' to leave it to AdamW" + READINGS.format("mix"),
    ),
}


@pytest.mark.parametrize(("call", "params", "kind", "message"), TREES.values(), ids=TREES)
def test_a_tree_is_refused_in_these_words(call, params, kind, message):
    assert message_of(kind, call, params) == message


CALLS = {
    "route": route,
    "label_params": muon_jax.label_params,
    "matrix_axes": muon_jax.matrix_axes,
    "explain": muon_jax.explain,
    "muon": lambda params, **options: muon_jax.muon(0.1, **options).init(params),
}
REFUSED = {
    "no arrays": (NO_ARRAYS, [], ValueError),
    "no array": ({"act": "gelu"}, [], TypeError),
    "complex": (COMPLEX, [], TypeError),
    "ambiguous": (AMBIGUOUS, [], ValueError),
    "view that does not fit": (tree_of({"up": (4, 6)}), [Rule("*", MatrixAxes(0, 2))], ValueError),
    "no rule": (AMBIGUOUS, ["*"], TypeError),
}


@pytest.mark.parametrize(("params", "rules", "kind"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("call", CALLS)
def test_an_error_starts_with_the_call(call, params, rules, kind):
    assert message_of(kind, CALLS[call], params, rules=rules).startswith(f"muon_jax.{call}: ")


@pytest.mark.parametrize("value", [jnp.float32, type("Sized", (), {"shape": (2, 3)})()])
def test_an_array_has_both_shape_and_dtype(value):
    message = message_of(TypeError, muon_jax.label_params, {"layer": {"static": value}})
    assert f"'layer/static' is a {type(value).__name__}, not an array" in message


@pytest.mark.parametrize(
    ("path", "shape", "why"),
    [
        ("mix", (2, 3, 4), "no rule knows it, and it has several readings"),
        (
            "query_key_value/kernel",
            (8, 24),
            "every head may hold its own query, key and value: an error asks",
        ),
    ],
)
def test_the_fallback_for_what_is_ambiguous_says_why(path, shape, why):
    (found,) = jax.tree.leaves(route(tree_of({path: shape}), ambiguous="fallback"))
    assert (found.label, found.axes, found.rule, found.why) == ("adamw", None, "ambiguous", why)


# Long lists


def with_ambiguous(count):
    return muon_jax.label_params(tree_of({f"mix{index}": (2, 3, 4) for index in range(count)}))


def with_labels(count):
    rules = [Rule(f"{index}", f"mine {index}") for index in range(count)]
    routes = route([jnp.ones(2)] * count, rules=rules)
    check_labels(routes, {"adamw"}, call="muon")


@pytest.mark.parametrize(
    ("call", "shown"),
    [(with_ambiguous, "mix3 (2, 3, 4)"), (with_labels, "'mine 3'")],
)
def test_four_are_named_and_the_rest_counted(call, shown):
    assert f"{shown} and 1 more" in message_of(ValueError, call, 5)
    assert "more" not in message_of(ValueError, call, 4)
