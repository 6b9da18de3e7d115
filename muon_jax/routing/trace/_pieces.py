"""What is known of an array inside a loss: which parameter axes run along its dimensions."""

import enum
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from muon_jax.views._matrix_axes import Shape


class Piece(NamedTuple):
    """A range of one parameter axis, which is a dimension of an array or a factor of a dimension.

    Attributes:
      leaf: index of the parameter; -1 for a factor that belongs to no parameter.
      axis: axis of the parameter.
      stride: distance between neighbouring entries along that axis.
      whole: number of entries at that stride before any slice.
      start: index of the first entry of the range.
      size: number of entries in the range.
      loose: whether a concatenation put other entries beside it, so that slices have no meaning.
      out: whether the entries are outputs computed with the parameter, not its own numbers.
    """

    leaf: int
    axis: int
    stride: int
    whole: int
    start: int
    size: int
    loose: bool = False
    out: bool = False

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What all slices of one range share: leaf, axis, stride and whole."""
        return self[:4]

    @property
    def stop(self) -> int:
        return self.start + self.size


Dim: TypeAlias = tuple[Piece, ...]
"""The factors of a dimension, outermost first; empty if no parameter axis runs along it."""

View: TypeAlias = tuple[Dim, ...]
"""The dimensions of an array; all pieces are outputs, or none is."""


class Kind(enum.IntEnum):
    """What the entries of an array depend on; a result has the largest kind of its operands."""

    CONST = 0
    PARAM = 1
    DATA = 2


CONST, PARAM, DATA = Kind


class Value(NamedTuple):
    """What is known of an array inside a loss.

    Attributes:
      kind: what its entries depend on.
      views: the pieces along its dimensions; several if several parameters contribute.
      sources: for PARAM, the parameters it is computed from; for DATA, the parameters whose outputs
        it holds and to which no later parameter has been applied.
      parts: the slices from which linear operations computed it.
      spread: the dimensions along which it is constant.
      tags: `iota`, `onehot`, `exp`, `bent` after a nonlinearity, and the index of a parameter for
        sums of exponentials over its outputs.
    """

    kind: Kind = CONST
    views: tuple[View, ...] = ()
    sources: frozenset[int] = frozenset()
    parts: frozenset[Piece] = frozenset()
    spread: frozenset[int] = frozenset()
    tags: frozenset[str | int] = frozenset()

    def pieces(self, axes: Collection[int] | None = None, *, out: bool) -> list[Piece]:
        """Lists the pieces along some dimensions: outputs, or parameters' own numbers."""
        dims = (view if axes is None else [view[axis] for axis in axes] for view in self.views)
        factors = itertools.chain(*itertools.chain(*dims))
        return [piece for piece in factors if piece.leaf >= 0 and piece.out == out]

    def with_views(self, views: Iterable[View | None], **known: Any) -> "Value":
        """Replaces the views, without duplicates."""
        distinct = dict.fromkeys(view for view in views if view is not None)
        return self._replace(views=tuple(distinct), **known)

    def each(self) -> "list[Value]":
        """Lists the value once for every view."""
        return [self._replace(views=(view,)) for view in self.views]

    def only(self, *, out: bool) -> "Value":
        """Keeps the views of outputs, or those of parameters' own numbers."""
        return self.with_views(each.views[0] for each in self.each() if each.pieces(out=out))

    def changed(self, change: Callable[[Dim], Dim], axis: int) -> "Value":
        """Replaces what runs along one dimension."""
        views = ((*view[:axis], change(view[axis]), *view[axis + 1 :]) for view in self.views)
        return self.with_views(views)

    def rearranged(self, places: Sequence[int | None], *, spread: bool = False) -> "Value":
        """Moves dimensions.

        Args:
          places: the old dimension for every new one; None for a dimension that is added.
          spread: whether the result is constant along added dimensions.
        """
        constant = self.spread | ({None} if spread else set())
        kept = frozenset(axis for axis, place in enumerate(places) if place in constant)
        views = (
            tuple(() if axis is None else view[axis] for axis in places) for view in self.views
        )
        return self.with_views(views, spread=kept)

    def as_outputs(self) -> "Value":
        """Turns parameters' own numbers into outputs, once they are applied to data."""
        views = (tuple(tuple(p._replace(out=True) for p in dim) for dim in v) for v in self.views)
        return self.with_views(views, parts=frozenset())

    def fitted(self, old: Shape, new: Shape) -> "Value":
        """Follows a change to a slice or a shard of the array, or back from it."""
        if old == new:
            return self
        if len(old) != len(new):
            places = range(1, len(old)) if len(new) < len(old) else [None, *range(len(old))]
            return self.rearranged(places)._replace(parts=frozenset())
        views = (tuple(map(_resized, view, old, new)) for view in self.views)
        return self.with_views(views, spread=frozenset())


def made(values: Sequence[Value], views: Iterable[View] = (), **known: Any) -> Value:
    """Describes a result to which all values contribute equally."""
    kind = max(value.kind for value in values)
    sources = union(value.sources for value in values if value.kind is kind)
    return Value(kind, (), sources).with_views(views, **known)


def own_value(leaf: int, shape: Shape) -> Value:
    """Describes a parameter itself; its axes of length one have no piece."""
    sizes = enumerate(shape)
    view = ((Piece(leaf, axis, 1, size, 0, size),) if size > 1 else () for axis, size in sizes)
    return Value(PARAM, (tuple(view),), frozenset((leaf,)))


def filler(size: int) -> Piece:
    """Returns a factor of a dimension that belongs to no parameter."""
    return Piece(-1, 0, 1, size, 0, size)


def reshaped(view: View, old: Sequence[int], new: Sequence[int]) -> View | None:
    """Follows a reshape; None if the new dimensions do not divide the factors of the old ones."""
    factors = [p for dim, size in zip(view, old, strict=True) for p in dim or (filler(size),)]
    queue = [piece for piece in reversed(factors) if piece.size > 1]
    dims = list[Dim]()
    for size in new:
        taken, need = list[Piece](), size
        while need > 1:
            piece = queue.pop() if queue else filler(need)
            outer = min(need, piece.size)
            if need % outer or piece.size % outer:
                return None
            if outer < piece.size:
                piece, rest = _divided(piece, outer)
                queue.append(rest)
            taken.append(piece)
            need //= outer
        dims.append(_merged(taken) if any(piece.leaf >= 0 for piece in taken) else ())
    return tuple(dims)


def _divided(piece: Piece, size: int) -> tuple[Piece, Piece]:
    """Divides a factor into an outer one of this size and an inner one."""
    inner = piece.size // size
    if piece.start % inner or piece.whole % inner:
        piece = piece._replace(start=0, whole=piece.size)  # a slice that is regrouped by itself
    whole, start, stride = piece.whole // inner, piece.start // inner, piece.stride * inner
    outer = piece._replace(stride=stride, whole=whole, start=start, size=size)
    return outer, piece._replace(whole=inner, start=0, size=inner)


def _merged(pieces: Iterable[Piece]) -> Dim:
    """Joins factors that `_divided` has made of one."""
    merged = list[Piece]()
    for piece in pieces:
        if merged:
            last, inner = merged[-1], piece.size
            whole, start, size = (count * inner for count in (last.whole, last.start, last.size))
            joined = piece._replace(whole=whole, start=start, size=size)
            if _divided(joined, last.size) == (last, piece):
                merged.pop()
                piece = joined
        merged.append(piece)
    return tuple(merged)


def sliced(dim: Dim, start: int, size: int, step: int) -> tuple[Dim, Piece | None]:
    """Follows a slice of a dimension; returns also the part of a parameter axis that it keeps.

    The dimension is empty if the slice keeps no whole multiples of the inner factors.
    """
    if not dim:
        return (), None
    first, *rest = dim
    inner = math.prod(piece.size for piece in rest)
    if step > 1 and not rest and size * step == first.size:  # every entry `start` of `step` ones
        kept, part = _divided(first, size)
        part = part._replace(start=start, size=1)
    elif step > 1 or start % inner or size % inner:
        return (), None
    else:
        part = kept = first._replace(start=first.start + start // inner, size=size // inner)
    is_part = first.leaf >= 0 and not first.loose and kept.size < first.size
    return (kept, *rest), part._replace(out=False) if is_part else None


def loosened(dim: Dim, size: int) -> Dim:
    """Follows a concatenation to a dimension of this size."""
    sizes = (size, *(1 for _ in dim[1:]))
    return tuple(p._replace(size=n, loose=True) for p, n in zip(dim, sizes, strict=False))


def _resized(dim: Dim, old: int, new: int) -> Dim:
    """Follows a change of a dimension between the whole and a shard, in its outermost factor."""
    if not dim:
        return dim
    size = dim[0].size * new // old
    return (dim[0]._replace(whole=size, size=size), *dim[1:])


def union(sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return frozenset().union(*sets)
