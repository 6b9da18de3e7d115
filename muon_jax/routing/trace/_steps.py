"""Steps of a loss that compute element by element or move dimensions, and what they tell."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal

from muon_jax.routing.trace._pieces import (
    Dim,
    Key,
    Kind,
    Piece,
    Value,
    View,
    Window,
    at,
    cut,
    distinct,
    loosened,
    only,
    reshaped,
    union,
)
from muon_jax.views._matrix_axes import Shape

CONST, PARAM, DATA = Kind


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


PASSED = _names("""
    convert_element_type reduce_precision stop_gradient copy copy_p device_put name pvary
    optimization_barrier sharding_constraint mesh_cast psum psum_invariant pmean ppermute
""")
"""Steps that leave what is known of every operand as it is."""
LINEAR = _names("add add_any sub neg select_n real imag conj complex")
"""Elementwise steps after which a slice of outputs is still that slice."""
BENT = _names("tanh logistic exp exp2 expm1 erf erfc log1p max clamp sin cos")
"""Elementwise steps that make a slice of outputs a gate."""
ELEMENTWISE = (
    LINEAR
    | BENT
    | _names("""
    mul div min pow integer_pow square sqrt rsqrt cbrt log abs sign tan asin acos atan atan2 sinh
    cosh asinh acosh atanh floor ceil round erf_inv lgamma digamma rem nextafter and or xor not
    eq ne lt le gt ge is_finite cumsum cumprod cummax cummin cumlogsumexp rev
""")
)


class Use(NamedTuple):
    """One contraction of a parameter with data: the axes summed over, produced and repeated."""

    rows: frozenset[int]
    cols: frozenset[int]
    batch: frozenset[int]
    groups: int = 1
    depthwise: bool = False


class Steps:
    """Follows values through single steps and notes what happens to the parameters in them.

    Attributes:
      shapes: of the parameters.
      uses: the contractions of every parameter with data.
      notes: what else happens to it, by a word, and along which of its axes (-1: no matter which).
      lost: why it cannot be followed any further, somewhere.
      cuts: the slices that were taken of every axis.
      glued: ranges of steps whose slices were laid side by side again, as rotary halves are.
      effects: what became of slices: they are `bent`, `mixed` with other data, or `scale` them.
      applied: the parameters whose outputs went into a later parameter.
    """

    def __init__(self, shapes: Sequence[Shape]):
        count = len(shapes)
        self.shapes = shapes
        self.uses = [list[Use]() for _ in range(count)]
        self.notes = [defaultdict[str, set[int]](set) for _ in range(count)]
        self.lost = [dict[str, None]() for _ in range(count)]
        self.cuts = defaultdict[Key, set[Window]](set)
        self.glued = defaultdict[Key, set[tuple[int, int]]](set)
        self.effects = defaultdict[Key, set[str]](set)
        self.applied = set[int]()

    def _note(self, word: str, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self.notes[piece.leaf][word].add(piece.axis)

    def _mark(self, value: Value, word: str) -> None:
        for leaf in value.sources if value.kind is PARAM else ():
            self.notes[leaf][word].add(-1)

    def _lose(self, value: Value, reason: str) -> None:
        for leaf in value.sources if value.kind is PARAM else ():
            self.lost[leaf][reason] = None

    def _effect(self, value: Value, effect: str) -> None:
        for key, _ in value.parts:
            self.effects[key].add(effect)

    def _choose(self, views: Sequence[View], axes: Sequence[int]) -> None:
        """Notes that outputs along these dimensions are alternatives."""
        self._note("alternatives", (p for p in at(views, axes, out=True) if not p.repeats))

    def _use(self, weights: Value, roles: Sequence[Sequence[int]], **how: Any) -> None:
        """Notes a contraction; activations count as weights if rows and columns are both there."""
        for view in weights.views:
            for leaf in {piece.leaf for piece in at([view], range(len(view)), out=False)}:
                rows, cols, batch = (
                    frozenset(p.axis for p in at([view], dims, out=False) if p.leaf == leaf)
                    for dims in roles
                )
                use = Use(rows, cols, batch, **how)
                if weights.kind is PARAM or (use.rows and use.cols):
                    self.uses[leaf].append(use)

    # Elementwise steps

    def _elementwise(self, eqn: Any, values: list[Value]) -> Value:
        shape, kind = eqn.outvars[0].aval.shape, max(value.kind for value in values)
        whole = [
            value._replace(spread=value.spread | _thin(atom.aval.shape, shape))
            for value, atom in zip(values, eqn.invars, strict=True)
            if atom.aval.ndim == len(shape) and value.kind is not CONST
        ]
        views = list[View]()
        for value in reversed(whole) if kind is DATA else whole:
            others = [v.spread for v in whole if v is not value and v.kind is DATA]
            weights = only(value.views, out=False)
            views += only(value.views, out=True)
            views += [w for w in weights if kind is PARAM or _still_weights(w, others)]
        for value in values if kind is DATA else ():
            self._mark(value, "rate" if "exp" in value.tags else "elementwise")
        spread = frozenset.intersection(*(v.spread for v in whole)) if whole else frozenset()
        parts = self._parts_after(eqn.primitive.name, values)
        tags = self._tags_after(eqn, values)
        return made(values, views, parts=parts, spread=spread, tags=tags)

    def _parts_after(self, name: str, values: list[Value]) -> frozenset[tuple[Key, Window]]:
        """The slices that a result still is; notes what became of the others."""
        if name in LINEAR:
            return union(value.parts for value in values)
        for value in values if name in BENT else ():
            self._effect(value, "bent")
        kept = set[tuple[Key, Window]]()
        for value, other in (values, values[::-1]) if name in ("mul", "div") else ():
            scaled = other.sources | {p.leaf for view in other.views for dim in view for p in dim}
            for key, window in value.parts:
                if other.kind is DATA and scaled - {key.leaf, -1}:
                    self.effects[key].add("scale")
                elif all(key != each or window == its for each, its in other.parts):
                    kept.add((key, window))
        return frozenset(kept)

    def _tags_after(self, eqn: Any, values: list[Value]) -> frozenset[str | int]:
        """What a result still is; notes a softmax, which divides by a sum of exponentials."""
        name, tags = eqn.primitive.name, union(value.tags for value in values)
        inverted = name in ("log", "log1p") or eqn.params.get("y", 0) < 0
        for leaf in tags if inverted else values[-1].tags if name == "div" else ():
            if isinstance(leaf, int):
                self.notes[leaf]["alternatives"].add(-1)
        kept = {tag for tag in tags if isinstance(tag, int) or tag in ("onehot", "bent")}
        if name == "eq" and "iota" in tags:
            kept.add("onehot")
        if name in BENT:
            kept.add("bent")
        produced = [value.tags for value in values if only(value.views, out=True)]
        masked = "exp" in tags and all("exp" in each for each in produced)
        if name in ("exp", "exp2") or (masked and name in ("mul", "neg", "select_n")):
            kept.add("exp")
        return frozenset(kept)

    # Steps that move dimensions

    def _transpose(self, eqn: Any, values: list[Value]) -> Value:
        return rearranged(values[0], eqn.params["permutation"])

    def _reshape(self, eqn: Any, values: list[Value]) -> Value:
        old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        transposed = eqn.primitive.name == "reshape" and eqn.params["dimensions"]
        order = transposed or range(len(old))
        value = rearranged(values[0], order)
        views = [reshaped(view, tuple(old[axis] for axis in order), new) for view in value.views]
        if None in views:
            self._lose(value, "is regrouped in a way that is not followed")
        return value._replace(views=distinct(v for v in views if v is not None), spread=frozenset())

    def _broadcast(self, eqn: Any, values: list[Value]) -> Value:
        old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        places = eqn.params.get("broadcast_dimensions", range(len(old)))
        came = {int(place): axis for axis, place in enumerate(places) if old[axis] == new[place]}
        return rearranged(values[0], [came.get(axis) for axis in range(len(new))], spread=True)

    def _cut(self, value: Value, axis: int, start: int, size: int, step: int = 1) -> Value:
        views, parts = list[View](), set[tuple[Key, Window]]()
        for view in value.views:
            dim, part = cut(view[axis], start, size, step) if view[axis] else ((), None)
            parts |= {part} if part else set()
            self._note("regrouped", at([view], [axis] if not dim else [], out=True))
            views.append((*view[:axis], dim, *view[axis + 1 :]))
        for key, window in parts:
            self.cuts[key].add(window)
            if "bent" in value.tags:
                self.effects[key].add("bent")
        return value._replace(views=distinct(views), parts=value.parts | parts)

    def _slice(self, eqn: Any, values: list[Value]) -> Value:
        value, starts = values[0], eqn.params["start_indices"]
        steps = eqn.params["strides"] or [1] * len(starts)
        for axis, size in enumerate(eqn.outvars[0].aval.shape):
            if size < eqn.invars[0].aval.shape[axis]:
                value = self._cut(value, axis, starts[axis], size, steps[axis])
        return value

    def _split(self, eqn: Any, values: list[Value]) -> list[Value]:
        sizes = list(map(int, eqn.params["sizes"]))
        return [
            self._cut(values[0], eqn.params["axis"], sum(sizes[:place]), size)
            for place, size in enumerate(sizes)
        ]

    def _dynamic_slice(self, eqn: Any, values: list[Value]) -> Value:
        value, sizes = values[0], eqn.outvars[0].aval.shape
        for axis, (size, start) in enumerate(zip(sizes, eqn.invars[1:], strict=True)):
            if size == eqn.invars[0].aval.shape[axis]:
                continue
            if isinstance(start, Literal):
                value = self._cut(value, axis, int(start.val), size)
            else:
                self._note("picked", at(value.views, [axis] if size == 1 else [], out=False))
                value = changed(value, axis, lambda _: ())
        return value._replace(kind=DATA) if value.kind is CONST else value

    def _concatenate(self, eqn: Any, values: list[Value]) -> Value:
        shape, kind = eqn.outvars[0].aval.shape, max(value.kind for value in values)
        axis = eqn.params["axis" if eqn.primitive.name == "stack" else "dimension"]
        if eqn.primitive.name == "stack":
            places = [*range(axis), None, *range(axis, len(shape) - 1)]
            values = [rearranged(value, places) for value in values]
        self._glue(values, range(max(0, axis - (shape[axis] == len(values))), axis + 1))
        for value in values if kind is DATA else ():
            self._mark(value, "token")
        loose = [changed(value, axis, lambda dim: loosened(dim, shape[axis])) for value in values]
        views = itertools.chain(*(value.views for value in loose if value.kind is kind))
        return made(values, views, parts=union(value.parts for value in values))

    def _glue(self, values: Sequence[Value], axes: Sequence[int]) -> None:
        """Notes slices of one axis that are laid side by side again, and so are no parts."""
        near = {(p.leaf, p.axis) for value in values for p in at(value.views, axes, out=True)}
        for key in {key for value in values for key, _ in value.parts}:
            held = [{window for each, window in v.parts if each == key} for v in values]
            windows = set[Window]().union(*held)
            if (key.leaf, key.axis) in near and len(windows) > 1 and sum(map(bool, held)) > 1:
                stepped = any(window.step > 1 for window in windows)
                start = min(window.start for window in windows)
                stop = max(window.start + window.size for window in windows)
                self.glued[key].add((0, key.whole) if stepped else (start, stop))

    def _pad(self, eqn: Any, values: list[Value]) -> Value:
        value = values[0]
        for axis, size in enumerate(eqn.outvars[0].aval.shape):
            if size != eqn.invars[0].aval.shape[axis]:
                value = changed(value, axis, functools.partial(loosened, size=size))
        return value

    def _reduce(self, eqn: Any, values: list[Value]) -> Value:
        name, value, rank = eqn.primitive.name, values[0], eqn.invars[0].aval.ndim
        axes = [axis % rank for axis in eqn.params["axes"]]
        tags = {tag for tag in value.tags if isinstance(tag, int)}
        if name.startswith("arg"):
            self._choose(value.views, axes)
        elif name == "reduce_sum" and "exp" in value.tags:
            tags |= {p.leaf for p in at(value.views, axes, out=True) if not p.repeats}
        kept = [axis for axis in range(rank) if axis not in axes]
        if name == "reduce_sum" and value.kind is DATA:  # a product that is written out
            self._use(value, (axes, kept, []))
        return rearranged(value, kept)._replace(tags=frozenset(tags), parts=frozenset())

    def _ranked(self, eqn: Any, values: list[Value]) -> Value:
        """A sort or a choice of the largest: what it orders are alternatives."""
        names = ("dimension", "axis", "reduction_dimension")
        axis = next(eqn.params[name] for name in names if name in eqn.params)
        for value in values:
            self._choose(value.views, [axis])
            self._lose(value, "is sorted")
        axis %= eqn.invars[0].aval.ndim
        return made(values, changed(values[0], axis, lambda _: ()).views)


def made(values: Sequence[Value], views: Iterable[View] = (), **known: Any) -> Value:
    """What is computed from values, all of which count alike."""
    kind = max(value.kind for value in values)
    sources = union(value.sources for value in values if value.kind is kind)
    return Value(kind, distinct(views), sources, **known)


def rearranged(value: Value, places: Sequence[int | None], *, spread: bool = False) -> Value:
    """Moves dimensions: each of the result was one of the value's, or is new where None.

    Args:
      value: what is known of the operand.
      places: the dimension of the operand for every one of the result.
      spread: whether the result is constant along new dimensions.
    """
    constant = value.spread | ({None} if spread else set())
    kept = (axis for axis, place in enumerate(places) if place in constant)
    views = (tuple(() if axis is None else view[axis] for axis in places) for view in value.views)
    return value._replace(views=distinct(views), spread=frozenset(kept))


def changed(value: Value, axis: int, change: Callable[[Dim], Dim]) -> Value:
    """Replaces what fills a dimension."""
    views = ((*view[:axis], change(view[axis]), *view[axis + 1 :]) for view in value.views)
    return value._replace(views=distinct(views))


def _thin(own: Shape, whole: Shape) -> set[int]:
    """The dimensions along which an operand is repeated to the shape of the result."""
    return {axis for axis, size in enumerate(own) if size < whole[axis]}


def _still_weights(view: View, spreads: Sequence[frozenset[int]]) -> bool:
    """Tells whether data scale a parameter axis by axis; entry by entry it is no longer weights."""
    own = {axis for axis in range(len(view)) if any(at([view], [axis], out=False))}
    return len(own) > 1 and all(own & spread for spread in spreads)
