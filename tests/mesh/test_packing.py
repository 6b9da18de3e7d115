"""Cutting and joining are inverse to each other, and agree with how JAX shards an array."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muon_jax.mesh._ownership import shard_shape
from muon_jax.mesh._packing import (
    between,
    cut,
    from_units,
    join,
    over_the_wire,
    side_by_side,
    solve_units,
    to_units,
)
from muon_jax.views._matrix_axes import MatrixAxes

MESH = {"a": 2, "b": 3, "c": 2}
WHOLE = np.arange(12 * 12 * 2).reshape(12, 12, 2)

specs = (
    st.permutations(tuple(MESH))
    .flatmap(
        lambda axes: st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
            lambda ends: tuple(
                tuple(axes[start:stop])
                for start, stop in itertools.pairwise([0, *sorted(ends), max(ends)])
            )
        )
    )
    .filter(lambda spec: "b" not in spec[2] and len(spec[2]) < 2)
)


@given(specs)
def test_joining_undoes_cutting(spec):
    axes = tuple(axis for axis in MESH if any(axis in sharding for sharding in spec))
    shards = cut(jnp.asarray(WHOLE), spec, axes, MESH)
    assert shards.shape[1:] == shard_shape(WHOLE.shape, spec, MESH)
    np.testing.assert_array_equal(join(shards, spec, axes, MESH), WHOLE)


@given(specs)
def test_a_shard_is_the_block_that_its_device_holds(spec):
    """The block along an axis counts the mesh axes that shard it, the first one slowest."""
    axes = tuple(axis for axis in MESH if any(axis in sharding for sharding in spec))
    shards = cut(jnp.asarray(WHOLE), spec, axes, MESH)
    for device, at in enumerate(np.ndindex(*(MESH[axis] for axis in axes))):
        coordinate = dict(zip(axes, at, strict=True))
        block = []
        for size, sharding in zip(shards.shape[1:], spec, strict=True):
            place = 0
            for axis in sharding:
                place = place * MESH[axis] + coordinate[axis]
            block.append(slice(place * size, (place + 1) * size))
        np.testing.assert_array_equal(shards[device], WHOLE[tuple(block)])


@pytest.mark.parametrize("batch_axes", [(), (0,), (1,), (0, 2), (1, 3)])
def test_units_go_back_into_their_leaf(batch_axes):
    leaf = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    units = to_units(jnp.asarray(leaf), batch_axes)
    assert len(units) == np.prod([leaf.shape[axis] for axis in batch_axes], dtype=int)
    np.testing.assert_array_equal(from_units(units, leaf.shape, batch_axes), leaf)
    first = leaf[tuple(slice(1) if axis in batch_axes else slice(None) for axis in range(4))]
    np.testing.assert_array_equal(units[0], first)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 9), st.integers(0, 9))
def test_a_range_of_parts_is_the_range_of_all(sizes, start, length):
    parts = [np.arange(size * 2).reshape(size, 2) + 100 * place for place, size in enumerate(sizes)]
    whole = np.concatenate(parts)
    start = min(start, len(whole))
    wanted = range(start, min(start + length, len(whole)))
    taken = between([jnp.asarray(part) for part in parts], wanted)
    np.testing.assert_array_equal(taken, whole[wanted.start : wanted.stop])


def test_buffers_are_filled_with_zeros():
    buffer = side_by_side([jnp.ones((2, 1)), jnp.ones((2, 0)), 2 * jnp.ones((2, 2))], 5)
    np.testing.assert_array_equal(buffer, [[1, 2, 2, 0, 0]] * 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_has_16_bits_travels_as_integers_and_has_its_derivative(dtype):
    travelled = []

    def swap(array):
        travelled.append(array.dtype)
        return array[::-1]

    values = jnp.asarray([0.0, -1.5, 3.0e4, 1e-3], dtype)
    np.testing.assert_array_equal(over_the_wire(swap)(values), values[::-1])
    assert travelled == [jnp.float32 if dtype == "float32" else jnp.uint16]
    weights = jnp.arange(4, dtype=dtype)
    gradient = jax.grad(lambda x: (over_the_wire(swap)(x) * weights).sum())(values)
    np.testing.assert_array_equal(gradient, weights[::-1])


def test_all_units_are_solved_in_one_call():
    calls = []

    def solve(matrices):
        calls.append([matrix.shape for matrix in matrices])
        return [2 * matrix for matrix in matrices]

    units = [jnp.ones((3, 1, 4, 6)), jnp.ones((2, 4, 6), jnp.bfloat16), jnp.ones((2, 0, 6))]
    views = [MatrixAxes(-2, -1), MatrixAxes(0, 1, split=(2, 4)), MatrixAxes(0, 1)]
    doubled = solve_units(units, views, solve)
    assert calls == [[(3, 4, 6), (2, 4, 2), (2, 4, 4), (2, 0, 6)]]
    for before, after in zip(units, doubled, strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, 2 * before)
