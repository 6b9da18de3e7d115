"""The verdict on every parameter: a view as matrices, or the reason why it is no matrix."""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from muon_jax.routing._route import Route
from muon_jax.routing._rule import FALLBACK, MUON
from muon_jax.routing._traced import TracedLeaf
from muon_jax.routing.trace._notes import Notes, Use
from muon_jax.routing.trace._products import MULTIPLIED
from muon_jax.views._matrix_axes import MatrixAxes, Shape, Split

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
"""For each use of a parameter in the loss: the label of its route, and the reason shown."""

UNUSED = "the loss never uses it"


class _UnreadError(Exception):
    """Has the reason why the route of a parameter cannot be read from the loss."""


def verdict(notes: Notes, leaf: int, named: Route, is_used: bool, is_end: bool) -> TracedLeaf:
    """Returns the route of a parameter read from the loss, or else its route by name.

    Args:
      notes: what happens to the parameters in the whole loss.
      leaf: index of the parameter.
      named: its route by name.
      is_used: whether the result of the loss depends on it.
      is_end: whether its outputs reach the result without another parameter.
    """
    try:
        if not is_used:
            raise _UnreadError(UNUSED)
        kind, axes = _no_matrix(notes, leaf, named.dtype), None
        if not kind:
            kind, axes = _matrix(notes, leaf, is_end)
    except _UnreadError as error:
        why = f"{named.why}; the loss does not tell: {error}"
        return TracedLeaf(named.path, named.shape, named.axes, named.rule, why, False)
    label, why = POLICY[kind]
    if label != MUON:
        axes = None
    elif axes and axes.split:
        why += "; split where they are used apart"
    return TracedLeaf(named.path, named.shape, axes, kind, why, True)


def is_vector(shape: Shape) -> bool:
    return sum(size > 1 for size in shape) < 2


def _no_matrix(notes: Notes, leaf: int, dtype: np.dtype) -> str:
    """Returns the kind of a parameter that is no matrix; an empty string if it may be one.

    Raises:
      _UnreadError: the loss does not decide.
    """
    axes, uses, lost = notes.axes[leaf], notes.uses[leaf], notes.lost[leaf]
    if is_vector(notes.shapes[leaf]):
        return "vector"
    if not (axes or uses or lost):
        raise _UnreadError(UNUSED)
    if dtype.kind == "c":
        raise _UnreadError("it is complex")
    if MULTIPLIED in lost or (lost and not _full(uses)):
        raise _UnreadError(f"it {MULTIPLIED if MULTIPLIED in lost else min(lost)}")
    looked_up = axes["indexed"] | axes["listed"]
    if looked_up and all(looked_up & (use.rows | use.cols) for use in _full(uses)):
        if uses and not axes["indexed"]:
            raise _UnreadError("a fixed list of its entries is contracted")
        return "lookup table"
    if any(use.depthwise for use in _full(uses)):
        return "depthwise filter"
    if _full(uses):
        return ""
    return next((_NO_MATRIX[word] for word in _NO_MATRIX if axes[word]), "elementwise")


_NO_MATRIX = {"state": "learned tokens", "token": "learned tokens", "rate": "rates"}


def _full(uses: Sequence[Use]) -> list[Use]:
    """Returns the contractions with both rows and columns."""
    return [use for use in uses if use.rows and use.cols]


def _matrix(notes: Notes, leaf: int, is_end: bool) -> tuple[str, MatrixAxes]:
    """Returns the kind of a parameter that is a matrix, and its view."""
    axes, shape = notes.axes[leaf], notes.shapes[leaf]
    roles = _agreed([_sorted(use, axes) for use in _full(notes.uses[leaf])])
    known = {cut.axis for cut in notes.cuts if cut.leaf == leaf}.union(*roles[:3])
    for axis, size in enumerate(shape):
        if size > 1 and axis not in known:
            raise _UnreadError(f"its axis {axis} cannot be followed")
    kind, cols, split = _parted(notes, leaf, roles)
    if axes["regrouped"] and split is None:
        raise _UnreadError("a slice of its outputs cannot be followed")
    if axes["alternatives"] and (is_end or not axes["features"]):
        kind = "logits" if is_end else "router"
    elif kind == "matrix" and is_end:
        kind = "last layer"
    return kind, MatrixAxes(sorted(roles.rows), cols, split)


def _sorted(use: Use, axes: Mapping[str, set[int]]) -> Use:
    """Moves axes of a contraction to the batch if other primitives pick or repeat along them."""
    picked = axes["picked"] | axes["indexed"]
    repeated = axes["repeated"] if use.cols - axes["repeated"] else set()
    cols, batch = use.cols - repeated, use.batch | picked | (repeated & use.cols)
    for twice in (use.rows & cols, (use.rows | cols) & batch):
        if twice:
            raise _UnreadError(f"its axis {min(twice)} has several roles at once")
    return use._replace(cols=cols, batch=batch)


def _agreed(uses: Sequence[Use]) -> Use:
    """Returns the most common contraction, if the others at most swap its rows and columns."""
    first = collections.Counter(uses).most_common(1)[0][0]
    for use in uses:
        if use not in (first, first._replace(rows=first.cols, cols=first.rows)):
            seen = (f"{sorted(each.rows)} -> {sorted(each.cols)}" for each in (first, use))
            raise _UnreadError(f"it is applied in different ways, {' and '.join(seen)}")
    return first


def _parted(notes: Notes, leaf: int, roles: Use) -> tuple[str, list[int], Split | None]:
    """Reads the slices of the outputs: returns the kind, the remaining columns and the split."""
    cols, shape = sorted(roles.cols), notes.shapes[leaf]
    split = Split(roles.groups) if roles.groups > 1 else None
    keys = {cut.key for cut in notes.cuts if cut.leaf == leaf and cut.axis in cols}
    for key in sorted(keys, key=lambda key: (-key[2] * key[3], key)):
        _, axis, stride, whole = key
        sizes = _tiles(notes, key)
        if len(sizes) < 2 or split is not None or axis not in cols:
            continue
        if notes.effects.get(key) == {"scale"}:
            return "modulation", cols, None
        if set(sizes) != {1} or whole < shape[axis]:
            widths = [shape[each] for each in cols]
            inner = stride * math.prod(widths[cols.index(axis) + 1 :])
            split = _split([size * inner for size in sizes], math.prod(widths))
        elif len(cols) > 1:  # parts have an axis of their own
            cols.remove(axis)
    return "matrix", cols, split


def _split(parts: Sequence[int], width: int) -> Split | None:
    """Returns the split of all outputs, flattened, into these parts or repetitions of them."""
    if width % sum(parts):
        return None
    is_interleaved = width > sum(parts)
    is_equal = set(parts) == {1} or (not is_interleaved and len(set(parts)) == 1)
    return Split(len(parts) if is_equal else tuple(parts), interleaved=is_interleaved)


def _tiles(notes: Notes, key: tuple[int, ...]) -> list[int]:
    """Returns the sizes of the smallest parts into which slices cut an axis."""
    glued, cuts = (
        [(part.start, part.stop) for part in parts if part.key == key]
        for parts in (notes.glued, notes.cuts)
    )
    whole, spans = key[3], glued + cuts
    edges = {0, whole, *itertools.chain(*spans)}
    inside = {edge for edge in edges if any(start < edge < stop for start, stop in glued)}
    tiles = list(itertools.pairwise(sorted(edges - inside)))
    if all(any(a <= start and stop <= b for a, b in spans) for start, stop in tiles):
        return [stop - start for start, stop in tiles]
    return [whole]
