"""Elementwise primitives, and primitives that move, cut, join or reduce dimensions."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Literal

from muon_jax.routing.trace._notes import Notes
from muon_jax.routing.trace._pieces import (
    CONST,
    DATA,
    PARAM,
    Piece,
    Value,
    View,
    loosened,
    made,
    reshaped,
    sliced,
    union,
)

LINEAR = "add add_any sub neg select_n real imag conj complex"
"""Elementwise primitives after which a slice of outputs is still that slice."""
BENT = "tanh logistic exp exp2 expm1 erf erfc log1p max clamp sin cos"
"""Elementwise primitives that turn a slice of outputs into a gate."""
ELEMENTWISE = f"""
    {LINEAR} {BENT}
    mul div min pow integer_pow square sqrt rsqrt cbrt log abs sign tan asin acos atan atan2 sinh
    cosh asinh acosh atanh floor ceil round erf_inv lgamma digamma rem nextafter and or xor not
    eq ne lt le gt ge is_finite cumsum cumprod cummax cummin cumlogsumexp rev
"""
REDUCTIONS = """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin
"""


def elementwise(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    shape, kind = eqn.outvars[0].aval.shape, max(value.kind for value in values)
    whole = list[Value]()
    for value, own in zip(values, (atom.aval.shape for atom in eqn.invars), strict=True):
        if len(own) == len(shape) and value.kind is not CONST:
            repeated = {axis for axis, size in enumerate(own) if size < shape[axis]}
            whole.append(value._replace(spread=value.spread | repeated))
    views = list[View]()
    for value in whole if kind is PARAM else reversed(whole):  # the latest outputs first
        others = [each.spread for each in whole if each is not value and each.kind is DATA]
        weights = value.only(out=False)
        views += value.only(out=True).views
        views += [view for view in weights.views if kind is PARAM or _is_scaled(view, others)]
    for value in values if kind is DATA else ():
        notes.mark([value], "rate" if "exp" in value.tags else "elementwise")
    spread = frozenset.intersection(*(value.spread for value in whole)) if whole else frozenset()
    parts, tags = _parts(notes, eqn.primitive.name, values), _tags(notes, eqn, values)
    return made(values, views, parts=parts, spread=spread, tags=tags)


def _is_scaled(weights: View, spreads: Sequence[frozenset[int]]) -> bool:
    """True if data scale a parameter by factors that are constant along one of its axes."""
    own = {axis for axis, dim in enumerate(weights) if any(piece.leaf >= 0 for piece in dim)}
    return len(own) > 1 and all(own & spread for spread in spreads)


def _parts(notes: Notes, name: str, values: list[Value]) -> frozenset[Piece]:
    """Returns the slices that the result still is; notes what happened to the others."""
    parts = union(value.parts for value in values)
    if name in LINEAR.split():
        return parts
    for part in parts if name in BENT.split() else ():
        notes.effects[part.key].add("bent")
    kept = set[Piece]()
    for value, other in (values, values[::-1]) if name in ("mul", "div") else ():
        leaves = other.sources | {piece.leaf for piece in other.pieces(out=True)}
        for part in value.parts:
            if other.kind is DATA and leaves - {part.leaf}:
                notes.effects[part.key].add("scale")
            elif all(part.key != each.key or part == each for each in other.parts):
                kept.add(part)
    return frozenset(kept)


def _tags(notes: Notes, eqn: Any, values: list[Value]) -> frozenset[str | int]:
    """Returns the tags of the result; notes a softmax, which divides by a sum of exponentials."""
    name, tags = eqn.primitive.name, union(value.tags for value in values)
    inverted = name in ("log", "log1p") or eqn.params.get("y", 0) < 0
    for leaf in tags if inverted else values[-1].tags if name == "div" else ():
        if isinstance(leaf, int):
            notes.axes[leaf]["alternatives"].add(-1)
    kept = {tag for tag in tags if isinstance(tag, int) or tag in ("onehot", "bent")}
    if name == "eq" and "iota" in tags:
        kept.add("onehot")
    if name in BENT.split():
        kept.add("bent")
    masked = "exp" in tags and all("exp" in v.tags for v in values if v.only(out=True).views)
    if name in ("exp", "exp2") or (masked and name in ("mul", "neg", "select_n")):
        kept.add("exp")
    return frozenset(kept)


def rearrange(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    """Follows `transpose`, `broadcast_in_dim` and `tile`."""
    del notes
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "transpose":
        return values[0].rearranged(eqn.params["permutation"])
    places = eqn.params.get("broadcast_dimensions", range(len(old)))
    came = {int(place): axis for axis, place in enumerate(places) if old[axis] == new[place]}
    return values[0].rearranged([came.get(axis) for axis in range(len(new))], spread=True)


def reshape(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    """Follows `reshape`, `squeeze` and `expand_dims`."""
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    order = (eqn.primitive.name == "reshape" and eqn.params["dimensions"]) or range(len(old))
    value = values[0].rearranged(order)
    views = [reshaped(view, [old[axis] for axis in order], new) for view in value.views]
    if None in views:
        notes.lose([value], "is regrouped in a way that is not followed")
    return value.with_views(views, spread=frozenset())


def cut(notes: Notes, eqn: Any, values: list[Value]) -> list[Value]:
    """Follows `slice`, `split` and `dynamic_slice`."""
    old, params, results = eqn.invars[0].aval.shape, eqn.params, list[Value]()
    known = [int(atom.val) if isinstance(atom, Literal) else None for atom in eqn.invars[1:]]
    starts = list[Any](params.get("start_indices") or known or [0] * len(old))
    steps = params.get("strides") or [1] * len(old)
    for var in eqn.outvars:
        value = values[0]._replace(kind=values[0].kind or DATA)
        for axis, size in enumerate(var.aval.shape):
            if size < old[axis] and starts[axis] is None:  # which one is known when the loss runs
                notes.note("picked", value.pieces([axis], out=False) if size == 1 else ())
                value = value.changed(lambda _: (), axis)
            elif size < old[axis]:
                value = _cut(notes, value, axis, (starts[axis], size, steps[axis]))
        results.append(value)
        if eqn.primitive.name == "split":
            starts[params["axis"]] += var.aval.shape[params["axis"]]
    return results


def _cut(notes: Notes, value: Value, axis: int, window: tuple[int, int, int]) -> Value:
    views, parts = list[View](), set[Piece]()
    for each in value.each():
        view = each.views[0]
        dim, part = sliced(view[axis], *window)
        views.append((*view[:axis], dim, *view[axis + 1 :]))
        parts |= {part} if part else set()
        notes.note("regrouped", each.pieces([axis], out=True) if not dim else ())
    for part in parts if "bent" in value.tags else ():
        notes.effects[part.key].add("bent")
    notes.cuts |= parts
    return value.with_views(views, parts=value.parts | parts)


def join(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    """Follows `concatenate` and `stack`."""
    shape, kind = eqn.outvars[0].aval.shape, max(value.kind for value in values)
    axis = eqn.params["axis" if eqn.primitive.name == "stack" else "dimension"]
    if eqn.primitive.name == "stack":
        places = [*range(axis), None, *range(axis, len(shape) - 1)]
        values = [value.rearranged(places) for value in values]
    _glue(notes, values, range(max(0, axis - (shape[axis] == len(values))), axis + 1))
    if kind is DATA:
        notes.mark(values, "token")
    loosen = functools.partial(loosened, size=shape[axis])
    loose = [value.changed(loosen, axis) for value in values if value.kind is kind]
    views = itertools.chain(*(value.views for value in loose))
    return made(values, views, parts=union(value.parts for value in values))


def _glue(notes: Notes, values: Sequence[Value], axes: Sequence[int]) -> None:
    """Notes slices of one axis that are concatenated again, which makes one part of them."""
    near = {piece[:2] for value in values for piece in value.pieces(axes, out=True)}
    for key in {part.key for value in values for part in value.parts if part[:2] in near}:
        held = [{part for part in value.parts if part.key == key} for value in values]
        parts = set[Piece]().union(*held)
        if len(parts) > 1 and sum(map(bool, held)) > 1:
            start, stop = min(part.start for part in parts), max(part.stop for part in parts)
            notes.glued.add(next(iter(parts))._replace(start=start, size=stop - start))


def pad(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    del notes
    value = values[0]
    for axis, size in enumerate(eqn.outvars[0].aval.shape):
        if size != eqn.invars[0].aval.shape[axis]:
            value = value.changed(functools.partial(loosened, size=size), axis)
    return value


def reduce(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    """Follows sums and extrema over dimensions, and `argmax` and `argmin`."""
    name, value, rank = eqn.primitive.name, values[0], eqn.invars[0].aval.ndim
    axes = [axis % rank for axis in eqn.params["axes"]]
    kept = [axis for axis in range(rank) if axis not in axes]
    tags = {tag for tag in value.tags if isinstance(tag, int)}
    if name.startswith("arg"):
        notes.choose(value, axes)
    if name == "reduce_sum" and "exp" in value.tags:
        tags |= {piece.leaf for piece in notes.outputs(value, axes)}
    if name == "reduce_sum" and value.kind is DATA:  # a product, written as `mul` and a sum
        notes.use(value, (axes, kept, []))
    return value.rearranged(kept)._replace(tags=frozenset(tags), parts=frozenset())


def rank(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    """Follows `sort` and `top_k`: the outputs that they order are alternatives."""
    names = ("dimension", "axis", "reduction_dimension")
    axis = next(eqn.params[name] for name in names if name in eqn.params)
    axis %= eqn.invars[0].aval.ndim
    for value in values:
        notes.choose(value, [axis])
    notes.lose(values, "is sorted")
    return made(values, values[0].changed(lambda _: (), axis).views)
