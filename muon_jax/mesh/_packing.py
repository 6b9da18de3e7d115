"""Cuts leaves into units and shards, and puts them together again: pure array functions.

A unit is a leaf with one entry along every batch axis. Its shards are laid out along a leading axis
in the order of the devices along some mesh axes, which is how a collective sends and receives them.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from muon_jax._types import Matrices, Solve
from muon_jax.mesh._ownership import Axes, MeshShape, Spec, group_size
from muon_jax.views._matrix_axes import MatrixAxes


def to_units(leaf: Array, batch_axes: Sequence[int]) -> Array:
    """Lays the batch axes of a leaf out as one leading axis: (units, *unit shape)."""
    rest = [axis for axis in range(leaf.ndim) if axis not in batch_axes]
    unit_shape = [1 if axis in batch_axes else n for axis, n in enumerate(leaf.shape)]
    units = math.prod(leaf.shape[axis] for axis in batch_axes)
    return leaf.transpose([*batch_axes, *rest]).reshape(units, *unit_shape)


def from_units(units: Array, shape: Sequence[int], batch_axes: Sequence[int]) -> Array:
    """Puts units back into a leaf of this shape; the inverse of `to_units`."""
    rest = [axis for axis in range(len(shape)) if axis not in batch_axes]
    order = [*batch_axes, *rest]
    leaf = units.reshape([shape[axis] for axis in order])
    return leaf.transpose([order.index(axis) for axis in range(len(shape))])


def cut(whole: Array, spec: Spec, axes: Axes, mesh: MeshShape) -> Array:
    """Cuts an array into the shards that `spec` gives to the devices along `axes`.

    Returns:
      An array of shape (devices along `axes`, *shard shape).
    """
    split_shape: list[int] = []
    places: dict[str, int] = {}
    kept: list[int] = []
    for size, sharding in zip(whole.shape, spec, strict=True):
        for axis in sharding:
            places[axis] = len(split_shape)
            split_shape.append(mesh[axis])
        kept.append(len(split_shape))
        split_shape.append(size // group_size(sharding, mesh))
    split = whole.reshape(split_shape).transpose([places[axis] for axis in axes] + kept)
    return split.reshape(group_size(axes, mesh), *(split_shape[place] for place in kept))


def join(shards: Array, spec: Spec, axes: Axes, mesh: MeshShape) -> Array:
    """Puts the shards of one array together; the inverse of `cut`."""
    split = shards.reshape(*(mesh[axis] for axis in axes), *shards.shape[1:])
    order: list[int] = []
    whole_shape: list[int] = []
    for place, sharding in enumerate(spec):
        order += [*(axes.index(axis) for axis in sharding), len(axes) + place]
        size = shards.shape[1 + place]
        whole_shape.append(size * group_size(sharding, mesh))
    return split.transpose(order).reshape(whole_shape)


def between(parts: Sequence[Array], wanted: range) -> Array:
    """Takes a range from arrays laid end to end along their first axis, and copies no others."""
    found: list[Array] = []
    start = 0
    for part in parts:
        inside = range(max(wanted.start - start, 0), min(wanted.stop - start, len(part)))
        if inside:
            found.append(part[inside.start : inside.stop])
        start += len(part)
    return jnp.concatenate(found) if found else parts[0][:0]


def side_by_side(flat: Sequence[Array], capacity: int) -> Array:
    """Lays arrays of shape (devices, entries) side by side, and zeros up to `capacity`."""
    joined = jnp.concatenate(flat, axis=1)
    return jnp.pad(joined, ((0, 0), (0, capacity - joined.shape[1])))


def solve_leaves(leaves: Sequence[Array], views: Sequence[MatrixAxes], solve: Solve) -> list[Array]:
    """Orthogonalises whole leaves of any shapes, all in one call of `solve`."""
    parts = [view.to_matrices(leaf) for view, leaf in zip(views, leaves, strict=True)]
    solved = iter(solve([part for group in parts for part in group]))
    return [
        view.from_matrices([next(solved) for _ in group], leaf.shape)
        for view, leaf, group in zip(views, leaves, parts, strict=True)
    ]


def solve_units(
    units: Sequence[Array],
    views: Sequence[MatrixAxes],
    solve: Solve,
) -> list[Array]:
    """Orthogonalises whole units of any shapes, all in one call of `solve`."""
    parts = [jax.vmap(view.to_matrices)(each) for view, each in zip(views, units, strict=True)]
    solved = iter(solve([_merged(part) for group in parts for part in group]))
    done = []
    for view, each, group in zip(views, units, parts, strict=True):
        matrices = tuple(next(solved).reshape(part.shape).astype(each.dtype) for part in group)
        done.append(jax.vmap(lambda m, v=view, s=each.shape[1:]: v.from_matrices(m, s))(matrices))
    return done


def _merged(part: Array) -> Matrices:
    """Joins the first two axes, also where another axis is empty."""
    return part.reshape(math.prod(part.shape[:2]), *part.shape[2:])


def over_the_wire(collective: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Lets a collective move 16-bit floats as integers.

    XLA may carry out a collective on bfloat16 in float32, as its CPU backend does, which doubles
    what travels. Nothing widens an integer that no arithmetic touches; nor does it have a
    derivative, so tangents travel as the floats that they are.
    """

    @jax.custom_jvp
    def move(array: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(array, jnp.uint16)
        return jax.lax.bitcast_convert_type(collective(bits), array.dtype)

    @move.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return move(*primals), collective(*tangents)

    return lambda array: move(array) if array.dtype.itemsize == 2 else collective(array)
