"""The verdict on every parameter: what the walk found of it, put as a view or as no matrix."""

import collections
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from muon_jax.routing._rule import FALLBACK, MUON
from muon_jax.routing.trace._pieces import Key, Window
from muon_jax.routing.trace._steps import Use
from muon_jax.routing.trace._walk import MULTIPLIED, Walk
from muon_jax.views._matrix_axes import MatrixAxes, Split

POLICY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "vector": (FALLBACK, "has at most one axis longer than one"),
        "elementwise": (FALLBACK, "multiplied with or added to data, entry by entry"),
        "rates": (FALLBACK, "its exponential multiplies data, entry by entry, as in a state space"),
        "lookup table": (FALLBACK, "its entries are looked up, also where it is tied to the head"),
        "learned tokens": (FALLBACK, "stands beside data, or is a state that a loop starts from"),
        "depthwise filter": (FALLBACK, "filters every channel alone"),
        "logits": (FALLBACK, "its outputs are alternatives of a softmax or a choice, at the end"),
        "router": (FALLBACK, "its outputs are alternatives of a softmax or a choice, inside"),
        "modulation": (MUON, "parts of its outputs scale other activations; one matrix"),
        "last layer": (MUON, "its outputs go to the loss, but through no softmax or choice"),
        "matrix": (MUON, "its inputs are summed over, and its outputs go on"),
    }
)
"""Where a parameter goes by what the loss does with it, and how that is said."""


UNUSED = "the loss never uses it"


class Verdict(NamedTuple):
    """What a parameter is: a word of `POLICY` and its view, or no word and why not."""

    kind: str
    axes: MatrixAxes | None
    why: str

    @property
    def is_read(self) -> bool:
        return self.kind in POLICY


class _UnreadError(Exception):
    """Says why a parameter cannot be read."""


def verdict(walk: Walk, leaf: int, dtype: np.dtype, ends: Collection[int]) -> Verdict:
    """Tells what a parameter is.

    Args:
      walk: after it has gone through the loss.
      leaf: the index of the parameter.
      dtype: of the parameter.
      ends: the parameters whose outputs reach the result of the loss without another's.
    """
    try:
        kind = _no_matrix(walk, leaf, dtype)
        axes = None
        if not kind:
            kind, axes = _matrix(walk, leaf, leaf in ends)
    except _UnreadError as error:
        return Verdict("", None, str(error))
    label, why = POLICY[kind]
    if axes is None or label != MUON:
        return Verdict(kind, None, why)
    return Verdict(kind, axes, why + ("; split where they are used apart" if axes.split else ""))


def _no_matrix(walk: Walk, leaf: int, dtype: np.dtype) -> str:
    """The word for a parameter that is no matrix; empty for one that may be.

    Raises:
      _UnreadError: says why the loss does not tell.
    """
    notes, uses, lost = walk.notes[leaf], walk.uses[leaf], walk.lost[leaf]
    if sum(size > 1 for size in walk.shapes[leaf]) < 2:
        return "vector"
    if not (notes or uses or lost):
        raise _UnreadError(UNUSED)
    if dtype.kind == "c":
        raise _UnreadError("it is complex")
    if MULTIPLIED in lost or (lost and not _full(uses)):
        raise _UnreadError(f"it {MULTIPLIED if MULTIPLIED in lost else min(lost)}")
    looked_up = notes["indexed"] | notes["listed"]
    if looked_up and all(looked_up & (use.rows | use.cols) for use in _full(uses)):
        if uses and not notes["indexed"]:
            raise _UnreadError("a fixed list of its entries is contracted")
        return "lookup table"
    if any(use.depthwise for use in _full(uses)):
        return "depthwise filter"
    if _full(uses):
        return ""
    return next((_NO_MATRIX[word] for word in _NO_MATRIX if notes[word]), "elementwise")


_NO_MATRIX = {"state": "learned tokens", "token": "learned tokens", "rate": "rates"}


def _full(uses: Sequence[Use]) -> list[Use]:
    """The contractions that have both inputs and outputs."""
    return [use for use in uses if use.rows and use.cols]


def _matrix(walk: Walk, leaf: int, is_end: bool) -> tuple[str, MatrixAxes]:
    """The word for a parameter that is a matrix, and its view."""
    notes, shape = walk.notes[leaf], walk.shapes[leaf]
    roles = _agreed([_sorted(use, notes) for use in _full(walk.uses[leaf])])
    known = roles.rows | roles.cols | roles.batch | {k.axis for k in walk.cuts if k.leaf == leaf}
    for axis, size in enumerate(shape):
        if size > 1 and axis not in known:
            raise _UnreadError(f"its axis {axis} cannot be followed")
    kind, cols, split = _parted(walk, leaf, roles)
    if notes["regrouped"] and split is None:
        raise _UnreadError("a slice of its outputs cannot be followed")
    if notes["alternatives"] and (is_end or not notes["features"]):
        kind = "logits" if is_end else "router"
    elif kind == "matrix" and is_end:
        kind = "last layer"
    return kind, MatrixAxes(sorted(roles.rows), cols, split)


def _sorted(use: Use, notes: Mapping[str, set[int]]) -> Use:
    """Sorts the axes of a contraction by all that is known of them."""
    picked = notes["picked"] | notes["indexed"]
    repeated = notes["repeated"] if use.cols - notes["repeated"] else set()
    cols, batch = use.cols - repeated, use.batch | picked | (repeated & use.cols)
    for twice in (use.rows & cols, (use.rows | cols) & batch):
        if twice:
            raise _UnreadError(f"its axis {min(twice)} has several roles at once")
    return use._replace(cols=cols, batch=batch)


def _agreed(uses: Sequence[Use]) -> Use:
    """The roles in all contractions, or in most, if others exchange inputs and outputs."""
    first = collections.Counter(uses).most_common(1)[0][0]
    for use in uses:
        if use not in (first, first._replace(rows=first.cols, cols=first.rows)):
            seen = (f"{sorted(each.rows)} -> {sorted(each.cols)}" for each in (first, use))
            raise _UnreadError(f"it is applied in different ways, {' and '.join(seen)}")
    return first


def _parted(walk: Walk, leaf: int, roles: Use) -> tuple[str, list[int], Split | None]:
    """What slices of the outputs tell: the word, the output axes that are left, and a split."""
    cols, shape = sorted(roles.cols), walk.shapes[leaf]
    split = Split(roles.groups) if roles.groups > 1 else None
    keys = [key for key in walk.cuts if key.leaf == leaf and key.axis in cols]
    for key in sorted(keys, key=lambda key: -key.stride * key.whole):
        sizes = _tiles(walk.cuts[key], walk.glued.get(key, ()), key.whole)
        stepped = any(window.step > 1 for window in walk.cuts[key])
        if len(sizes) < 2 or split is not None or key.axis not in cols:
            continue
        if walk.effects.get(key) == {"scale"}:
            return "modulation", cols, None
        if set(sizes) != {1} or key.whole < shape[key.axis] or stepped:
            split = _split(key, sizes, stepped, [shape[axis] for axis in cols], cols)
        elif len(cols) > 1:  # parts have an axis of their own
            cols.remove(key.axis)
    return "matrix", cols, split


def _split(
    key: Key, sizes: Sequence[int], stepped: bool, widths: Sequence[int], cols: Sequence[int]
) -> Split | None:
    """Puts parts of one axis as parts of all outputs, flattened."""
    inner = key.stride * math.prod(widths[cols.index(key.axis) + 1 :])
    parts = tuple(size * inner for size in sizes)
    if stepped or math.prod(widths) % sum(parts):
        return Split(len(sizes), interleaved=True) if stepped and inner == 1 else None
    if math.prod(widths) > sum(parts):
        return Split(len(parts) if set(parts) == {1} else parts, interleaved=True)
    return Split(len(parts) if len(set(parts)) == 1 else parts)


def _tiles(
    windows: Collection[Window], glued: Collection[tuple[int, int]], whole: int
) -> tuple[int, ...]:
    """The smallest parts into which slices cut an axis; one if they do not cover it."""
    stepped = {(window.start % window.step, window.step) for window in windows if window.step > 1}
    if stepped:
        count = len(stepped)
        apart = not glued and stepped == {(offset, count) for offset in range(count)}
        return (whole // count,) * count if apart else (whole,)
    spans = [*glued, *((window.start, window.start + window.size) for window in windows)]
    edges = sorted(
        edge
        for edge in {0, whole, *itertools.chain(*spans)}
        if not any(start < edge < stop for start, stop in glued)
    )
    tiles = list(itertools.pairwise(edges))
    if all(any(a <= start and stop <= b for a, b in spans) for start, stop in tiles):
        return tuple(stop - start for start, stop in tiles)
    return (whole,)
