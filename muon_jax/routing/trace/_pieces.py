"""What is known of an array in the middle of a loss: which axes of which parameters fill it."""

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from muon_jax.views._matrix_axes import Shape


class Key(NamedTuple):
    """A way to count along an axis of a parameter: `whole` steps of `stride`, perhaps repeated."""

    leaf: int
    axis: int
    stride: int
    whole: int


class Window(NamedTuple):
    """Which of these steps a slice keeps."""

    start: int
    size: int
    step: int = 1


class Piece(NamedTuple):
    """A run of one axis of a parameter, which fills a dimension of a value or a factor of it.

    Attributes:
      leaf: the index of the parameter; -1 where the factor belongs to no parameter.
      axis: of the parameter.
      stride: how far apart along that axis the entries are.
      whole: how many there are at that stride before any slice.
      start: the first of them that is here.
      size: how many are here.
      loose: whether entries of other origin lie beside them, so that slices tell nothing.
      out: whether these are outputs computed with the parameter, not its own numbers.
      repeats: whether they are outputs along a batch axis of the parameter.
    """

    leaf: int
    axis: int
    stride: int
    whole: int
    start: int
    size: int
    loose: bool = False
    out: bool = False
    repeats: bool = False


Dim: TypeAlias = tuple[Piece, ...]
"""The factors of a dimension, outermost first; empty where nothing of a parameter is in it."""

View: TypeAlias = tuple[Dim, ...]


class Kind(enum.IntEnum):
    """What a value depends on, beside constants."""

    CONST = 0
    PARAM = 1
    DATA = 2


class Value(NamedTuple):
    """What is known of an array in the middle of a loss.

    Attributes:
      kind: what it depends on.
      views: the pieces in its dimensions; several where several parameters may fill them.
      sources: the parameters that a PARAM value is made of; for DATA, those whose outputs it holds
        and which no later parameter has been applied to.
      parts: the slices that led here by linear steps alone.
      spread: the dimensions along which it is constant.
      tags: `iota`, `onehot`, `exp`, `bent` after a nonlinearity, and the index of a parameter for
        sums of exponentials over its outputs.
    """

    kind: Kind = Kind.CONST
    views: tuple[View, ...] = ()
    sources: frozenset[int] = frozenset()
    parts: frozenset[tuple[Key, Window]] = frozenset()
    spread: frozenset[int] = frozenset()
    tags: frozenset[str | int] = frozenset()


def own_view(leaf: int, shape: Shape) -> View:
    """The view of a parameter itself; axes of one have no piece."""
    return tuple(
        (Piece(leaf, axis, 1, size, 0, size),) if size > 1 else ()
        for axis, size in enumerate(shape)
    )


def filler(size: int) -> Piece:
    """A factor of a dimension that belongs to no parameter."""
    return Piece(-1, 0, 1, size, 0, size)


def reshaped(view: View, old: Shape, new: Sequence[int]) -> View | None:
    """Follows a reshape; None where it regroups the entries of a piece."""
    factors = [p for dim, size in zip(view, old, strict=True) for p in dim or (filler(size),)]
    queue = [piece for piece in reversed(factors) if piece.size > 1]
    dims = list[Dim]()
    for size in new:
        taken, need = list[Piece](), size
        while need > 1:
            if not queue:
                return None
            piece = queue.pop()
            inner = max(1, piece.size // need)
            halves = _divided(piece, inner) if inner > 1 else (piece, None)
            if halves is None or need % halves[0].size:
                return None
            taken.append(halves[0])
            need //= halves[0].size
            queue += [halves[1]] if halves[1] else []
        dims.append(_merged(taken) if any(piece.leaf >= 0 for piece in taken) else ())
    return tuple(dims)


def _merged(pieces: Sequence[Piece]) -> Dim:
    """Joins neighbours that count along one axis, as the groups of a norm do that is undone."""
    merged = [*pieces[:1]]
    for piece in pieces[1:]:
        last, size = merged[-1], piece.size
        outer = piece._replace(stride=piece.stride * size, whole=last.whole, start=last.start)
        if piece.whole == size and last == outer._replace(size=last.size):
            counts = last.whole * size, last.start * size, last.size * size
            whole, start, size = counts
            merged[-1] = piece._replace(whole=whole, start=start, size=size)
        else:
            merged.append(piece)
    return tuple(merged)


def _divided(piece: Piece, inner: int) -> tuple[Piece, Piece] | None:
    """Cuts a factor in two; `inner` is the size of the second."""
    if piece.start % inner or piece.whole % inner:
        piece = piece._replace(start=0, whole=piece.size)  # a part that is regrouped by itself
    counts = piece.whole, piece.start, piece.size
    if piece.size % inner:
        return None
    whole, start, size = (count // inner for count in counts)
    outer = piece._replace(stride=piece.stride * inner, whole=whole, start=start, size=size)
    return outer, piece._replace(whole=inner, start=0, size=inner)


def cut(dim: Dim, start: int, size: int, step: int) -> tuple[Dim, tuple[Key, Window] | None]:
    """Follows a slice of a dimension, and tells which part of which axis it keeps.

    The dimension is empty where the slice regroups pieces.
    """
    first, *rest = dim
    inner = 1
    for piece in rest:
        inner *= piece.size
    if start % inner or size % inner or (step > 1 and rest):
        return (), None
    key = Key(first.leaf, first.axis, first.stride, first.whole)
    window = Window(first.start + start // inner, size // inner, step)
    kept = first._replace(start=window.start, size=window.size)
    if step > 1:
        kept = first._replace(stride=first.stride * step, whole=size, start=0, size=size)
    told = first.leaf >= 0 and not first.loose and window.size < first.size
    return (kept, *rest), (key, window) if told else None


def loosened(dim: Dim, size: int) -> Dim:
    """Follows a concatenation to a dimension of this size."""
    ones = tuple(piece._replace(size=1, loose=True) for piece in dim[1:])
    return tuple(piece._replace(size=size, loose=True) for piece in dim[:1]) + ones


def resized(view: View, old: Shape, new: Shape) -> View:
    """Follows a change between a whole array and its shards, dimension by dimension."""
    return tuple(
        tuple(
            piece._replace(whole=piece.size * count // size, size=piece.size * count // size)
            for piece in dim[:1]
        )
        + dim[1:]
        for dim, size, count in zip(view, old, new, strict=True)
    )


def at(views: Iterable[View], axes: Iterable[int], *, out: bool) -> Iterator[Piece]:
    """The pieces in some dimensions that are outputs of parameters, or that are their own."""
    axes = list(axes)
    for view in views:
        for axis in axes:
            yield from (p for p in view[axis] if p.leaf >= 0 and p.out == out)


def only(views: Iterable[View], *, out: bool) -> tuple[View, ...]:
    """Keeps only the pieces that are outputs, or only those that are not; drops bare views."""

    def kept(dim: Dim) -> Dim:
        return tuple(p if p.leaf >= 0 and p.out == out else filler(p.size) for p in dim)

    return distinct(
        tuple(kept(dim) if any(at([(dim,)], [0], out=out)) else () for dim in view)
        for view in views
        if any(at([view], range(len(view)), out=out))
    )


def as_outputs(dim: Dim, *, repeats: bool = False) -> Dim:
    """Turns the numbers of a parameter along a dimension into outputs computed with it."""
    return tuple(p if p.out or p.leaf < 0 else p._replace(out=True, repeats=repeats) for p in dim)


def distinct(views: Iterable[View]) -> tuple[View, ...]:
    return tuple(dict.fromkeys(views))


def union(sets: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return frozenset().union(*sets)
