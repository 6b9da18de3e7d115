"""Each check: values that pass, and the errors for other values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from muon_jax import _checks

NUMBER, WHOLE = "give a number", "give a whole number of at least 1"
SCHEDULED = "give a number or a schedule"
DTYPE = "give float32, bfloat16, float16 or float64, or None for the parameter's own"
CHOICE = "choose one of 'one', 'two'"
FRACTION, FINITE = "give a number in [0, 1)", "give a finite number of at least 0"
NO_SCHEDULE = "give a number, and schedule it by optax.inject_hyperparams(muon_jax.call)"


@pytest.fixture(autouse=True)
def in_a_call():
    with _checks.named("call"):
        yield


def choice(argument, value):
    _checks.check_choice(argument, value, ("one", "two"))


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (_checks.check_bool, [True, False]),
        (choice, ["one", "two"]),
        (_checks.check_fraction, [0, 0.999, np.float32(0.5), jnp.float32(2), lambda step: 0.5]),
        (_checks.check_no_schedule, [0.5, "anything else"]),
        (_checks.check_non_negative, [0, 7.5, 1e300, jnp.float32(-1), lambda step: 0.5]),
        (_checks.check_number, [-1, 0.5, np.float64(3)]),
        (_checks.check_positive_int, [1, 2, np.int64(3)]),
        (_checks.check_float_dtype, [None, "float32", jnp.bfloat16, "float16", np.float64]),
    ],
)
def test_lets_through(check, values):
    for value in values:
        check("argument", value)


@pytest.mark.parametrize(
    ("check", "kind", "value", "remedy"),
    [
        (_checks.check_bool, TypeError, 1, "give True or False"),
        (choice, ValueError, "three", CHOICE),
        (_checks.check_fraction, ValueError, 1, FRACTION),
        (_checks.check_fraction, ValueError, -0.5, FRACTION),
        (_checks.check_fraction, TypeError, True, SCHEDULED),
        (_checks.check_fraction, TypeError, "0.5", SCHEDULED),
        (_checks.check_no_schedule, TypeError, abs, NO_SCHEDULE),
        (_checks.check_non_negative, ValueError, -1, FINITE),
        (_checks.check_non_negative, ValueError, float("inf"), FINITE),
        (_checks.check_non_negative, ValueError, float("nan"), FINITE),
        (_checks.check_non_negative, TypeError, False, SCHEDULED),
        (_checks.check_number, TypeError, True, NUMBER),
        (_checks.check_number, TypeError, None, NUMBER),
        (_checks.check_positive_int, ValueError, 0, WHOLE),
        (_checks.check_positive_int, TypeError, True, WHOLE),
        (_checks.check_positive_int, TypeError, 1.0, WHOLE),
        (_checks.check_float_dtype, TypeError, "floaty", DTYPE),
        (_checks.check_float_dtype, ValueError, "int32", DTYPE),
        (_checks.check_float_dtype, ValueError, "float8_e4m3fn", DTYPE),
    ],
)
def test_refuses(check, kind, value, remedy):
    with pytest.raises(kind) as refusal:
        check("argument", value)
    assert type(refusal.value) is kind
    assert str(refusal.value) == f"muon_jax.call(argument={value!r}): {remedy}."


def test_refuses_what_is_no_orthogonalizer():
    _checks.check_orthogonalizer(abs)
    with pytest.raises(TypeError) as refusal:
        _checks.check_orthogonalizer("svd")
    assert str(refusal.value) == (
        "muon_jax.call(orthogonalizer='svd'): give a callable from (batch, rows, cols) to the same "
        "shape, or newton_schulz(...)."
    )


def test_a_dtype_is_returned_as_one():
    assert _checks.check_float_dtype("argument", None) is None
    assert _checks.check_float_dtype("argument", "bfloat16") == jnp.bfloat16


def test_a_tree_is_refused_by_a_sentence():
    problem = _checks.refused("two leaves differ", "Make them equal")
    assert type(problem) is ValueError
    assert str(problem) == "muon_jax.call: two leaves differ. Make them equal."
    assert type(_checks.refused("", "", TypeError)) is TypeError


@pytest.mark.parametrize(("length", "shown"), [(78, 78), (79, 77)])
def test_a_long_value_is_cut(length, shown):
    """A value of 78 letters and two quotes fills 80 columns."""
    text = repr("x" * length)
    expected = text if shown == length else f"{text[:shown]}..."
    problem = _checks.invalid("argument", "x" * length, "shorten it")
    assert str(problem) == f"muon_jax.call(argument={expected}): shorten it."
    assert len(expected) == 80


def test_a_list_is_shown_in_full_up_to_its_limit():
    assert _checks.listed("abc") == "a, b, c"
    assert _checks.listed("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert _checks.listed("abcdefghi") == "a, b, c, d, e, f, g, h and 1 more"
    assert _checks.listed("abcd", limit=2) == "a, b and 2 more"


def test_a_path_reads_as_in_patterns():
    tree = {"blocks": [{"kernel": 1.0}]}
    ((path, _),) = jax.tree_util.tree_leaves_with_path(tree)
    assert _checks.path_name(path) == "blocks/0/kernel"
