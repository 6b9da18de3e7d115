"""Preconditioning by second moments of the gradient, entry by entry: Muon²."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from muon_jax import _checks
from muon_jax._types import wide_dtype
from muon_jax.mesh._specs import manual_axes, with_explicit_as_auto
from muon_jax.mesh._state import zeros_sharded_as
from muon_jax.polar._normalize import nonzero
from muon_jax.transforms._ema import mean_size, root_mean_square
from muon_jax.transforms.precondition._preconditioner import Viewed
from muon_jax.views._matrix_axes import MatrixAxes, Shape


class Factors(NamedTuple):
    """Root mean squares of the entries of each row and of each column.

    Both have the axes of the matrices; those that are averaged over have size one.
    """

    rows: Array
    cols: Array


@dataclasses.dataclass(frozen=True)
class SecondMoment:
    r"""Divides by the root mean square of earlier gradients, entry by entry: Muon².

    .. math::
      R \leftarrow \sqrt{\beta R^2 + (1 - \beta) G^2}, \qquad
      U = s \cdot \operatorname{polar}(M / R)

    The state is one array like the parameter, in float32. It stores R, not its square, so that
    gradients of every size keep full precision. With `factored`, it is one number for each row and
    column of a matrix, as in Adafactor: R is the product of their root mean squares over that of
    the whole matrix.

    Args:
      decay: β, in [0, 1).
      factored: whether to store root mean squares of rows and columns alone.

    Raises:
      TypeError or ValueError: for an unusable argument; with `factored`, at `update` inside
        `shard_map` or `pmap`, where a leaf may be a shard.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.scale_by_muon(precondition=muon_jax.SecondMoment(factored=True))

    References:
      `Muon² <https://arxiv.org/abs/2604.09967>`_, 2026;
      Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018
    """

    decay: float = 0.95
    factored: bool = False

    @_checks.named("SecondMoment", inside=True)
    def __post_init__(self):
        _checks.check_no_schedule("decay", self.decay)
        _checks.check_fraction("decay", self.decay)
        _checks.check_bool("factored", self.factored)

    @property
    def keeps(self) -> Literal["arrays", "entries"]:
        return "entries" if self.factored else "arrays"

    def init(self, leaves: Sequence[Array], viewed: Viewed) -> list[Any]:
        return list(map(self._zeros, leaves, viewed.views))

    def apply(
        self,
        directions: Sequence[Array],
        gradients: Sequence[Array],
        state: list[Any],
        count: Int[Array, ""],
        viewed: Viewed,
    ) -> tuple[list[Array], list[Any]]:
        del count
        step = self._factored if self.factored else self._divided
        new = list(map(step, directions, gradients, state, viewed.views))
        return [direction for direction, _ in new], [kept for _, kept in new]

    def _zeros(self, leaf: Array, view: MatrixAxes) -> Array | tuple[Factors, ...]:
        wide = wide_dtype(jnp.result_type(leaf))
        if not self.factored:
            return zeros_sharded_as(leaf, wide)
        shapes = view.matrix_shapes(leaf.shape) if view.split else (leaf.shape,)
        rows, cols = _matrix_axes(view)

        def zeros(shape: Shape, averaged: Shape) -> Array:
            sizes = list(shape)
            for axis in averaged:
                sizes[axis] = 1
            return jnp.zeros(sizes, wide)

        return tuple(Factors(zeros(shape, cols), zeros(shape, rows)) for shape in shapes)

    def _divided(
        self, direction: Array, gradient: Array, old: Array, view: MatrixAxes
    ) -> tuple[Array, Array]:
        del view
        size = root_mean_square(old, gradient, self.decay)
        return direction / nonzero(size), size

    def _factored(
        self, direction: Array, gradient: Array, old: tuple[Factors, ...], view: MatrixAxes
    ) -> tuple[Array, tuple[Factors, ...]]:
        refuse_shards("SecondMoment()")
        wide = (each.astype(wide_dtype(each.dtype)) for each in (direction, gradient))
        axes = _matrix_axes(view)
        numbers, structure = jax.tree.flatten(old)

        def run(direction: Array, gradient: Array, *numbers: Array) -> list[Array]:
            parts = (
                view.to_matrices(each) if view.split else (each,) for each in (direction, gradient)
            )
            new = [
                self._rank_one(direction, gradient, factors, *axes)
                for direction, gradient, factors in zip(
                    *parts, structure.unflatten(numbers), strict=True
                )
            ]
            divided = [part for part, _ in new]
            whole = view.from_matrices(divided, direction.shape) if view.split else divided[0]
            return [whole, *jax.tree.leaves([factors for _, factors in new])]

        call = with_explicit_as_auto(run, [direction, *numbers])
        divided, *numbers = call(*wide, *numbers)
        return divided, structure.unflatten(numbers)

    def _rank_one(
        self, direction: Array, gradient: Array, old: Factors, row_axes: Shape, col_axes: Shape
    ) -> tuple[Array, Factors]:
        largest = nonzero(jnp.max(jnp.abs(gradient), axis=(*row_axes, *col_axes), keepdims=True))
        squares = jnp.square(gradient / largest)
        rows, cols = (
            root_mean_square(
                kept, largest * jnp.sqrt(jnp.mean(squares, axis=axes, keepdims=True)), self.decay
            )
            for kept, axes in zip(old, (col_axes, row_axes), strict=True)
        )
        whole = nonzero(mean_size(rows, row_axes))
        return direction / nonzero(rows / whole * cols), Factors(rows, cols)


def refuse_shards(instead: str) -> None:
    """Raises inside shard_map and pmap, where a leaf may be a shard."""
    if manual_axes():
        raise _checks.refused(
            "inside shard_map or pmap a leaf may be a shard, and statistics of a shard are not "
            "those of its matrix",
            f"Call update under jit instead, or use {instead}",
        )


def _matrix_axes(view: MatrixAxes) -> tuple[Shape, Shape]:
    """Returns the axes of rows and of columns of every part."""
    return ((1,), (2,)) if view.split else (view.rows, view.cols)
