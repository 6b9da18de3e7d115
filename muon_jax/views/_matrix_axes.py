"""Views of a tensor of any rank as a batch of matrices.

The axes of a weight form three groups: axes that the layer contracts (`rows`), axes that it
produces (`cols`), and batch axes, along which the layer is repeated. A `Split` separates a fused
axis, such as concatenated q, k and v.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from muon_jax._checks import check_choice, check_positive_int, invalid, named, refused
from muon_jax._types import Batch, Matrices, Solve

Shape: TypeAlias = tuple[int, ...]
MatricesShape: TypeAlias = tuple[int, int, int]
Item = TypeVar("Item")


def without_ones(shape: Shape) -> Shape:
    """Returns a shape without its axes of size one."""
    return tuple(size for size in shape if size != 1)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Split:
    """Splits one fused axis group into parts, each a separate matrix.

    Args:
      parts: the number of equal parts, or the size of every part in order.
      of: the group to split, `"cols"` (fused outputs) or `"rows"` (fused inputs).
      interleaved: True if the parts repeat along the axis, False if each is contiguous.
        `Split(2, interleaved=True)` separates even and odd columns; `Split((64, 64, 64),
        interleaved=True)` separates q, k and v that are stored head by head.

    Raises:
      ValueError: a part is smaller than 1, or there is none.

    Examples:
      >>> import muon_jax
      >>> grouped = muon_jax.MatrixAxes(rows=0, cols=1, split=muon_jax.Split((8, 2, 2)))
      >>> grouped.matrix_shapes((8, 12))
      ((1, 8, 8), (1, 8, 2), (1, 8, 2))
    """

    parts: int | tuple[int, ...]
    of: Literal["rows", "cols"]
    interleaved: bool

    @named("Split", inside=True)
    def __init__(
        self,
        parts: int | Sequence[int],
        of: Literal["rows", "cols"] = "cols",
        interleaved: bool = False,
    ):
        sizes = tuple(parts) if isinstance(parts, Sequence) else parts
        for size in sizes if isinstance(sizes, tuple) else (sizes,):
            check_positive_int("parts", size)
        if sizes == ():
            raise invalid("parts", parts, "give at least one part")
        check_choice("of", of, ("rows", "cols"))
        object.__setattr__(self, "parts", sizes)
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "interleaved", bool(interleaved))

    def __repr__(self) -> str:
        of = "" if self.of == "cols" else f", of={self.of!r}"
        return f"Split({self.parts}{of}{', interleaved=True' if self.interleaved else ''})"

    def fits(self, size: int) -> bool:
        """Returns whether the parts fill an axis of `size` exactly."""
        if isinstance(self.parts, int):
            return size % self.parts == 0
        total = sum(self.parts)
        return size % total == 0 if self.interleaved else size == total

    def part_shapes(self, shape: Shape) -> tuple[MatricesShape, ...]:
        """Lists the shapes of the arrays that `cut` returns for matrices of this shape."""
        _, sizes, repeats = self._pattern(shape)
        batch, rows, cols = shape
        if _equal(sizes):
            batch, sizes = batch * len(sizes), sizes[:1]
        if self.of == "rows":
            return tuple((batch, size * repeats, cols) for size in sizes)
        return tuple((batch, rows, size * repeats) for size in sizes)

    def cut(self, matrices: Matrices) -> tuple[Batch, ...]:
        """Separates the parts: equal ones become batch entries, unequal ones separate arrays."""
        axis, sizes, repeats = self._pattern(matrices.shape)
        before, after = matrices.shape[:axis], matrices.shape[axis + 1 :]
        targets = self.part_shapes(matrices.shape)
        if _equal(sizes):
            pattern = matrices.reshape(*before, repeats, len(sizes), sizes[0], *after)
            return (jnp.moveaxis(pattern, axis + 1, 1).reshape(targets[0]),)
        pattern = matrices.reshape(*before, repeats, sum(sizes), *after)
        starts = [sum(sizes[:count]) for count in range(1, len(sizes))]
        parts = jnp.split(pattern, starts, axis=axis + 1)
        return tuple(part.reshape(target) for part, target in zip(parts, targets, strict=True))

    def join(self, parts: Sequence[Batch], shape: Shape) -> Matrices:
        """Concatenates the parts again; the inverse of `cut`."""
        axis, sizes, repeats = self._pattern(shape)
        before, after = shape[:axis], shape[axis + 1 :]
        if _equal(sizes):
            apart = (shape[0], len(sizes), *shape[1:axis], repeats, sizes[0], *after)
            return jnp.moveaxis(parts[0].reshape(apart), 1, axis + 1).reshape(shape)
        pattern = [
            part.reshape(*before, repeats, size, *after)
            for part, size in zip(parts, sizes, strict=True)
        ]
        return jnp.concatenate(pattern, axis=axis + 1).reshape(shape)

    def _pattern(self, shape: Shape) -> tuple[int, tuple[int, ...], int]:
        """Returns the axis to split, the sizes of one period, and the number of periods."""
        axis = 1 if self.of == "rows" else 2
        if isinstance(self.parts, tuple):
            return axis, self.parts, shape[axis] // sum(self.parts)
        width = shape[axis] // self.parts
        sizes, repeats = (1, width) if self.interleaved else (width, 1)
        return axis, (sizes,) * self.parts, repeats


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class MatrixAxes:
    """Names the input and output axes of a weight; all others are batch axes.

    Args:
      rows: the input axis or axes, flattened in this order. Negative ones count from the end, so
        `rows=-2, cols=-1` fits a weight and any stack of it.
      cols: the output axis or axes.
      split: how the outputs (or inputs, by `Split(..., of="rows")`) form separate matrices: a
        number of equal parts, their sizes, or a `Split`. One part is no split.
      whole: another view, for preconditioners. If each head of a projection is a matrix, this may
        be the view in which the whole projection is one.

    Raises:
      ValueError: one axis is in both.
      TypeError: a group is empty, an axis is not an integer, or `whole` is no view.

    Examples:
      >>> import muon_jax
      >>> muon_jax.MatrixAxes(rows=0, cols=(1, 2)).matrix_shapes((512, 8, 64))  # all heads as one
      ((1, 512, 512),)
      >>> muon_jax.MatrixAxes(rows=0, cols=2).matrix_shapes((512, 8, 64))  # each head by itself
      ((8, 512, 64),)
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    split: Split | None
    whole: "MatrixAxes | None" = dataclasses.field(compare=False)

    @named("MatrixAxes", inside=True)
    def __init__(
        self,
        rows: int | Sequence[int],
        cols: int | Sequence[int],
        split: int | Sequence[int] | Split | None = None,
        *,
        whole: "MatrixAxes | None" = None,
    ):
        row_axes, col_axes = _axis_group("rows", rows), _axis_group("cols", cols)
        both = set(row_axes) & set(col_axes)
        if both:
            raise invalid("cols", cols, f"axis {min(both)} is already in rows")
        if not isinstance(whole, MatrixAxes | None):
            raise invalid("whole", whole, "give a MatrixAxes, or leave it out", TypeError)
        object.__setattr__(self, "rows", row_axes)
        object.__setattr__(self, "cols", col_axes)
        if not (split is None or isinstance(split, Split)):
            split = Split(split)
        object.__setattr__(self, "split", None if split and split.parts == 1 else split)
        object.__setattr__(self, "whole", whole)

    def __repr__(self) -> str:
        rows, cols = (axes[0] if len(axes) == 1 else axes for axes in (self.rows, self.cols))
        plain = self.split is not None and self.split == Split(self.split.parts)
        split = self.split.parts if plain and self.split else self.split
        return f"MatrixAxes(rows={rows}, cols={cols}{'' if split is None else f', split={split}'})"

    def below_an_axis(self) -> "MatrixAxes":
        """Returns the view of this weight with one more axis in front."""
        rows, cols = (
            tuple(axis if axis < 0 else axis + 1 for axis in axes)
            for axes in (self.rows, self.cols)
        )
        return MatrixAxes(rows, cols, self.split)

    @named("MatrixAxes")
    def check(self, shape: Shape, *, path: str = "") -> None:
        """Raises ValueError if the view does not fit `shape`; the message has `path`."""
        what = f"{self!r} does not fit {repr(path) + ' of ' if path else ''}shape {shape}"
        ndim = len(shape)
        for axis in self.rows + self.cols:
            if not -ndim <= axis < ndim:
                raise refused(
                    f"{what}: it has no axis {axis}",
                    f"Name axes between {-ndim} and {ndim - 1}" if ndim else "A scalar has no axes",
                )
        axes = [axis % ndim for axis in self.rows + self.cols]
        twice = sorted(axis for axis in set(axes) if axes.count(axis) > 1)
        if twice:
            raise refused(f"{what}: axis {twice[0]} is named twice", "Name every axis once")
        if self.split is not None:
            size = math.prod(shape[axis] for axis in getattr(self, self.split.of))
            if not self.split.fits(size):
                raise refused(
                    f"{what}: its {self.split.of} are {size} wide",
                    "Give a split whose parts fill that width exactly",
                )

    def batch_axes(self, ndim: int) -> Shape:
        """Lists the batch axes of a weight of this rank."""
        return self._groups(ndim)[0]

    def matrix_shapes(self, shape: Shape) -> tuple[MatricesShape, ...]:
        """Lists the (batch, rows, cols) of the arrays that `to_matrices` returns for this shape."""
        whole = self._whole(shape)
        return (whole,) if self.split is None else self.split.part_shapes(whole)

    def to_matrices(self, leaf: Float[Array, "..."]) -> tuple[Batch, ...]:
        """Reshapes a weight to batches of matrices.

        Returns:
          One array of shape (batch, rows, cols). Equal parts of a split become batch entries, the
          minor part of the batch axis; unequal parts become one array each.
        """
        whole = self._whole(leaf.shape)
        matrices = transposed(leaf, self.order(leaf.ndim)).reshape(whole)
        return (matrices,) if self.split is None else self.split.cut(matrices)

    def from_matrices(self, matrices: Sequence[Batch], shape: Shape) -> Float[Array, "..."]:
        """Restores a weight of this shape; the exact inverse of `to_matrices`."""
        whole = self._whole(shape)
        joined = matrices[0] if self.split is None else self.split.join(matrices, whole)
        order = self.order(len(shape))
        inverse = tuple(order.index(axis) for axis in range(len(shape)))
        return transposed(joined.reshape([shape[axis] for axis in order]), inverse)

    def _groups(self, ndim: int) -> tuple[Shape, Shape, Shape]:
        rows = tuple(axis % ndim for axis in self.rows)
        cols = tuple(axis % ndim for axis in self.cols)
        return tuple(axis for axis in range(ndim) if axis not in rows + cols), rows, cols

    def order(self, ndim: int) -> Shape:
        """Lists the axes of a weight of this rank: batch axes, rows, columns."""
        batch, rows, cols = self._groups(ndim)
        return batch + rows + cols

    def _whole(self, shape: Shape) -> MatricesShape:
        """The (batch, rows, cols) before any split."""
        self.check(tuple(shape))
        batch, rows, cols = (
            math.prod(shape[axis] for axis in group) for group in self._groups(len(shape))
        )
        return batch, rows, cols


def viewed(items: Sequence[Item], views: Sequence[MatrixAxes | None]) -> list[Item]:
    """Returns the items of the leaves that have a view."""
    return [item for item, view in zip(items, views, strict=True) if view is not None]


def same_matrices(one: MatrixAxes, other: MatrixAxes, shape: Shape) -> bool:
    """Returns whether two views give the same matrices, up to the order of their entries."""
    return _meaning(one, shape) == _meaning(other, shape)


def solve_leaves(leaves: Sequence[Array], views: Sequence[MatrixAxes], solve: Solve) -> list[Array]:
    """Orthogonalises leaves of any shapes, all in one call of `solve`."""
    parts = [view.to_matrices(leaf) for view, leaf in zip(views, leaves, strict=True)]
    solved = iter(solve([part for group in parts for part in group]))
    return [
        view.from_matrices([next(solved) for _ in group], leaf.shape).astype(leaf.dtype)
        for view, leaf, group in zip(views, leaves, parts, strict=True)
    ]


def solve_batches(
    batches: Sequence[Array], views: Sequence[MatrixAxes], solve: Solve
) -> list[Array]:
    """Orthogonalises batches of leaves; `views` do not count the batch axis in front."""
    return solve_leaves(batches, [view.below_an_axis() for view in views], solve)


def _meaning(view: MatrixAxes, shape: Shape) -> tuple[Any, ...]:
    """Returns input and output axes of sizes above one, sorted unless there is a split."""
    _, *groups = view._groups(len(shape))
    rows, cols = (tuple(axis for axis in group if shape[axis] != 1) for group in groups)
    if view.split is None:
        return sorted(rows), sorted(cols), None
    return rows, cols, view.split._pattern(view._whole(shape))


def _axis_group(argument: str, axes: int | Sequence[int]) -> tuple[int, ...]:
    group = tuple(axes) if isinstance(axes, Sequence) else (axes,)
    integral = (isinstance(axis, numbers.Integral) and not isinstance(axis, bool) for axis in group)
    if not group or not all(integral):
        raise invalid(argument, axes, "give an axis or a tuple of axes", TypeError)
    if len(set(group)) < len(group):
        raise invalid(argument, axes, "name every axis once")
    return tuple(int(axis) for axis in group)


def _equal(sizes: tuple[int, ...]) -> bool:
    return len(set(sizes)) == 1


def transposed(array: Float[Array, "..."], order: Shape) -> Float[Array, "..."]:
    """Transposes, except for the identity permutation."""
    return array if order == tuple(range(array.ndim)) else jnp.transpose(array, order)
