"""Many steps, many leaves, a large leaf, and the size of their programs."""

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from matrices import gaussian

import muon_jax
from benchmarks.soaking import MEMORY_OF_THIS_PROCESS, Row, soak

AXES = muon_jax.MatrixAxes(rows=-2, cols=-1)

SMALLEST_OBJECT = 16  # bytes, in CPython
# Noise of allocators; a leak of the 10 KiB of weights at each step would take ten times as much.
RESIDENT_SLACK = 2**23

# Rounding in float32, 6e-8, times the slope of the default schedule at small singular values, 319.
ROUNDING = 1e-4


# Many steps


@pytest.fixture(scope="module")
def soaked() -> list[Row]:
    """Returns a row after each thousand steps, without the first, in which programs load."""
    return soak(thousands=10)[1:]


@pytest.mark.slow
def test_ten_thousand_steps_keep_no_array(soaked):
    first, *others = soaked
    assert all((row.arrays, row.live) <= (first.arrays, first.live) for row in others)


@pytest.mark.slow
def test_ten_thousand_steps_keep_no_python_object_each(soaked):
    first, *_, last = soaked
    assert last.python - first.python < SMALLEST_OBJECT * (last.steps - first.steps)


@pytest.mark.slow
@pytest.mark.skipif(not MEMORY_OF_THIS_PROCESS.exists(), reason="only Linux says")
def test_ten_thousand_steps_leave_the_process_its_size(soaked):
    first, *_, last = soaked
    assert last.resident - first.resident < RESIDENT_SLACK


# Many leaves


def layers(count: int, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Returns a model of `count` layers, each with one kernel of every shape."""
    return {
        f"layer_{layer}": {
            f"dense_{index}": {"kernel": jnp.asarray(gaussian(*shape, seed=layer))}
            for index, shape in enumerate(shapes)
        }
        for layer in range(count)
    }


@pytest.mark.parametrize("leaves", covering([40, 1000], fast=[40]))
def test_many_leaves_are_updated_as_four_at_a_time(leaves):
    model = layers(leaves // 4, ((8, 8), (8, 16), (16, 8), (4, 8)))
    assert len(jax.tree.leaves(model)) == leaves
    tx = muon_jax.muon(0.1)
    update = jax.jit(tx.update)
    together, _ = update(model, tx.init(model), model)
    for name, layer in model.items():
        alone, _ = update(layer, tx.init(layer), layer)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=ROUNDING), together[name], alone
        )


# Programs

WIDE = tuple((16, 16 * times) for times in (4, 5, 6, 7))  # with equal plans


@cache
def program(leaves: int, shapes: int) -> dict[str, int]:
    """Counts lines, loops and products of a program that updates leaves of several shapes."""
    model = jax.eval_shape(lambda: layers(leaves // shapes, WIDE[:shapes]))
    tx = muon_jax.muon(0.1)
    state = jax.eval_shape(tx.init, model)
    text = jax.jit(tx.update).lower(model, state, model).as_text()
    counts = {name: len(re.findall(rf"stablehlo\.{name}\b", text)) for name in LOOPS_AND_PRODUCTS}
    return counts | {"lines": text.count("\n")}


LOOPS_AND_PRODUCTS = ("while", "dot_general")


@pytest.mark.parametrize("leaves", covering([40, 400], fast=[40]))
def test_loops_and_products_of_a_program_do_not_grow_with_leaves(leaves):
    few, many = program(leaves=4, shapes=1), program(leaves=leaves, shapes=1)
    for name in LOOPS_AND_PRODUCTS:
        assert many[name] == few[name] > 0


def test_loops_and_products_of_a_program_grow_linearly_with_shapes():
    for shapes in (2, 3, 4):
        for name in LOOPS_AND_PRODUCTS:
            assert program(leaves=4 * shapes, shapes=shapes)[name] == shapes * program(4, 1)[name]


@pytest.mark.parametrize("each", covering([10, 100], fast=[10]))
def test_lines_of_a_program_grow_linearly_with_leaves(each):
    few, more, many = (program(times * each, 1)["lines"] for times in (1, 2, 3))
    assert many - more == pytest.approx(more - few, rel=0.01)


# A large leaf


def reflected(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiplies by two reflections, which keep singular values and are their own inverse."""
    matrix = matrix - 2 * np.outer(left, left @ matrix)
    return matrix - 2 * np.outer(matrix @ right, right)


@pytest.mark.slow
def test_a_leaf_of_4096_by_4096(rng):
    side, spread = 4096, 100
    left, right = (v / np.linalg.norm(v) for v in rng.normal(size=(2, side)))
    values = np.geomspace(1 / spread, 1, side)
    model = {"kernel": jnp.asarray(reflected(np.diag(values), left, right), jnp.float32)}
    tx = muon_jax.scale_by_muon(axes=AXES, scale="none")
    state = tx.init(model)
    compiled = jax.jit(tx.update, donate_argnums=(0, 1)).lower(model, state).compile()
    updates, _ = compiled(model, state)
    # After the same reflections, the nearest orthogonal matrix is the identity.
    actual = reflected(np.asarray(updates["kernel"], np.float64), left, right)
    np.testing.assert_allclose(np.diag(actual), 1, atol=0.1)
    np.testing.assert_allclose(actual - np.diag(np.diag(actual)), 0, atol=ROUNDING)
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 5.1 * 4 * side**2  # five matrices beside those donated
