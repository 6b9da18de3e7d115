"""Results of `trace_axes` for small losses, with one layer or one operation of JAX each."""

import functools

import jax
import pytest
from traced_layers import LAYERS
from traced_steps import STEPS
from traces import answers, array

CASES = LAYERS | STEPS


def tree_of(shapes):
    tree = {}
    for path, shape in shapes.items():
        *above, last = path.split("/")
        functools.reduce(lambda place, name: place.setdefault(name, {}), above, tree)[last] = array(
            *shape
        )
    return tree


@pytest.mark.parametrize("name", CASES)
def test_what_a_loss_does_with_a_parameter(name):
    loss, shapes, args, expected = CASES[name]
    with jax.numpy_rank_promotion("allow"):
        assert answers(loss, tree_of(shapes), *args) == expected
