"""States of other rules, schedules or widths raise an error."""

import jax.numpy as jnp
import optax
import pytest
from routes import array

import muon_jax
from muon_jax._checks import named
from muon_jax.routing._rule import Rule
from muon_jax.transforms._same_leaves import check_same_leaves

FITS = "the state does not fit the parameters, rules and schedules"
RESTORE = "Restore those that made the state, or make a new state with `init`."
PARAMS = {"Xception": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
KERNEL = {"Xception": {"kernel": jnp.ones((2, 3))}}
FROZEN = {"rules": [Rule("*/bias", "frozen")], "transforms": {"frozen": optax.set_to_zero()}}


STATES = {
    "widths": (
        muon_jax.scale_by_muon(),
        KERNEL,
        muon_jax.scale_by_muon(),
        {"Xception": {"kernel": jnp.ones((2, 4))}},
        f"muon_jax.scale_by_muon: {FITS}: 'Xception/kernel' has shape (2, 3) in the state and "
        f"shape (2, 4) now. {RESTORE}",
    ),
    "widths of a recipe": (
        muon_jax.muon(0.1),
        KERNEL,
        muon_jax.muon(0.1),
        {"Xception": {"kernel": jnp.ones((2, 4))}},
        f"muon_jax.muon: {FITS}: 'muon/0/mu/Xception/kernel' has shape (2, 3) in the state "
        f"and shape (2, 4) now. {RESTORE}",
    ),
    "rules": (
        muon_jax.muon(0.1, **FROZEN),
        PARAMS,
        muon_jax.muon(0.1),
        PARAMS,
        f"muon_jax.muon: {FITS}: 'adamw/0/mu/Xception/bias' has nothing in the state and shape "
        "(3,) now, 'adamw/0/nu/Xception/bias' has nothing in the state and shape (3,) now, "
        f"'frozen' has no array in the state and nothing now. {RESTORE}",
    ),
}


@pytest.mark.parametrize(("made_by", "params", "tx", "now", "message"), STATES.values(), ids=STATES)
def test_a_state_is_refused_in_these_words(made_by, params, tx, now, message):
    with pytest.raises(ValueError, match="does not fit") as caught:
        tx.update(now, made_by.init(params), now)
    assert str(caught.value) == message


def momentum(**shapes):
    return {name: array(*shape) if shape else optax.MaskedNode() for name, shape in shapes.items()}


def test_a_state_made_otherwise_is_refused_with_the_differing_paths():
    state = momentum(kernel=(2, 3), head=(3, 5), wte=None, same=(2, 2))
    updates = momentum(kernel=(2, 4), head=None, wte=(9, 2), same=(2, 2))
    words = r"^muon_jax\.scale_by_muon: the state does not"
    with named("scale_by_muon"), pytest.raises(ValueError, match=words) as caught:
        check_same_leaves(state, updates)
    message = str(caught.value)
    assert "'kernel' has shape (2, 3) in the state and shape (2, 4) now" in message
    assert "'head' has shape (3, 5) in the state and nothing now" in message
    assert "'wte' has nothing in the state and shape (9, 2) now" in message
    assert "'same'" not in message


def test_four_paths_are_named_and_the_rest_counted():
    for count, end in ((4, "(3,) now. "), (5, "(3,) now and 1 more. ")):
        with pytest.raises(ValueError, match="does not fit") as caught:
            check_same_leaves([jnp.ones(2)] * count, [jnp.ones(3)] * count)
        assert end in str(caught.value)
