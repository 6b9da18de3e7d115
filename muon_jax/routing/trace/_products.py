"""Primitives that apply a parameter to data: contractions, convolutions and lookups."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from muon_jax.routing.trace._notes import Notes
from muon_jax.routing.trace._pieces import CONST, DATA, PARAM, Dim, Value, View, union

MULTIPLIED = "is multiplied with another parameter"
"""Why a parameter is lost; which of the two takes the place of data is unknown."""


def dot(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    contracted, batch = eqn.params["dimension_numbers"]
    free = [
        [axis for axis in range(atom.aval.ndim) if axis not in (*summed, *repeated)]
        for atom, summed, repeated in zip(eqn.invars, contracted, batch, strict=True)
    ]
    sides = _tokens_as_data(notes, values, free)
    if all(side.kind is DATA for side in sides):
        _compare(notes, sides, contracted)
    gaps = [[None] * len(axes) for axes in free]
    places = [*batch[0], *free[0], *gaps[1]], [*batch[1], *gaps[0], *free[1]]
    views = list[View]()
    for mine, side in enumerate(sides):
        summed, repeated = ((axes[mine], axes[1 - mine]) for axes in (contracted, batch))
        left = _contracted(notes, side, sides[1 - mine], summed, repeated, free[mine])
        views += left.rearranged(places[mine]).views
    kind = PARAM if all(side.kind is PARAM for side in sides) else DATA
    return Value(kind, (), union(side.sources for side in sides)).with_views(views)


def _contracted(
    notes: Notes, side: Value, other: Value, summed: Any, batch: Any, free: list[int]
) -> Value:
    """Notes what a contraction does to one operand, and returns what the result keeps of it.

    Args:
      notes: what happens to the parameters; updated.
      side: the operand.
      other: the other operand.
      summed: the dimensions summed over, of this operand and of the other.
      batch: the batch dimensions, likewise.
      free: the remaining dimensions of this operand.
    """
    if other.kind is PARAM or side.kind is CONST:
        return side if side.kind is PARAM else side.only(out=True)
    along = [own for own, its in zip(*summed, strict=True) if _repeats(notes, other, its)]
    rows = [axis for axis in summed[0] if axis not in along]
    notes.use(side, (rows, free, [*batch[0], *along]))
    if side.kind is PARAM:
        notes.applied |= other.sources
        for own, its in zip(*batch, strict=True):
            outputs = notes.outputs(other, [its]) if side.pieces([own], out=False) else ()
            whole = (p for p in outputs if p.size == notes.shapes[p.leaf][p.axis])
            notes.note("repeated", whole)
        if "onehot" in other.tags:
            notes.note("indexed", side.pieces(summed[0], out=False))
            return side
    return side.as_outputs()


def _repeats(notes: Notes, value: Value, axis: int) -> bool:
    """True if a dimension of data is a batch axis of the parameters that made it."""
    made_by = [each for each in value.each() if each.pieces([axis], out=True)]
    return any(not notes.outputs(each, [axis]) for each in made_by)


def _tokens_as_data(
    notes: Notes, values: list[Value], free: Sequence[Sequence[int]]
) -> list[Value]:
    """Replaces learned tokens by data in a product of two parameters.

    Tokens are broadcast over a batch, or recognised by their name.
    """
    if any(value.kind is not PARAM for value in values):
        return values
    is_token = [bool(value.spread & set(axes)) for value, axes in zip(values, free, strict=True)]
    if sum(is_token) != 1:
        is_token = [value.sources <= notes.tokens for value in values]
    if not any(is_token):
        notes.lose(values, MULTIPLIED)
    notes.mark(itertools.compress(values, is_token), "state")
    return [Value(DATA) if each else value for value, each in zip(values, is_token, strict=True)]


def _compare(notes: Notes, sides: Sequence[Value], contracted: Any) -> None:
    """Notes contractions between the outputs of two layers.

    A softmax over such outputs, as in linear attention, makes features and not alternatives.
    """
    for axes in zip(*contracted, strict=True):
        here, there = (
            {piece.leaf for piece in notes.outputs(side, [axis], "repeated")}
            for side, axis in zip(sides, axes, strict=True)
        )
        for leaf in here | there if here and there and here != there else ():
            notes.axes[leaf]["features"].add(-1)


def ragged_dot(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    data, weights = values[:2]
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, summed), _ = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions
    if not groups:
        notes.lose([weights], "goes through a ragged product that is not followed")
    free = [axis for axis in range(eqn.invars[1].aval.ndim) if axis not in (*summed, *groups)]
    notes.use(weights, (summed, free, groups))
    notes.applied |= data.sources
    gap = [None] * (eqn.outvars[0].aval.ndim - len(free))
    return weights.as_outputs().rearranged([*gap, *free])._replace(kind=DATA)


def convolution(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    data, weights = values
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    outputs, inputs, *window = numbers.rhs_spec
    shape, channels = eqn.outvars[0].aval.shape, numbers.out_spec[1]
    alone = eqn.invars[1].aval.shape[inputs] == 1
    notes.lose([data], "is convolved as data are")
    notes.applied |= data.sources if weights.kind is PARAM else set()
    for each in weights.each():
        (view,) = each.views
        stack, left = _stack(view[outputs], groups)
        cols = view[outputs][len(stack) :]
        apart = each.with_views([(*view[:outputs], cols, *view[outputs + 1 :], stack)])
        roles = [inputs, *window], [outputs], [len(view)]
        notes.use(apart, roles, groups=left, depthwise=left > 1 and alone)

    def placed(value: Value, axis: int) -> tuple[View, ...]:
        places: list[int | None] = [None] * len(shape)
        places[channels] = axis
        return value.rearranged(places).views

    views = placed(weights.as_outputs(), outputs)
    if alone and shape[channels] == groups > 1:  # every channel is still what it was
        views += placed(data.only(out=True), numbers.lhs_spec[1])
    return Value(DATA, views, weights.sources)


def _stack(dim: Dim, groups: int) -> tuple[Dim, int]:
    """Returns the outer factors of outputs that `vmap` made groups, and the groups in each."""
    for place in range(len(dim) - 1, 0, -1):
        size = math.prod(piece.size for piece in dim[:place])
        axes, others = ({piece.axis for piece in part} for part in (dim[:place], dim[place:]))
        if groups % size == 0 and axes.isdisjoint(others):
            return dim[:place], groups // size
    return (), groups


def gather(notes: Notes, eqn: Any, values: list[Value]) -> Value:
    (table, index), numbers = values, eqn.params["dimension_numbers"]
    sizes, shape = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    cut = [axis for axis, size in enumerate(sizes) if size < shape[axis]]
    picked = [axis for axis in numbers.start_index_map if axis in cut]
    if index.kind is DATA:
        notes.choose(table, picked)
        notes.applied |= index.sources
    notes.note("indexed" if index.kind is DATA else "listed", table.pieces(picked, out=False))
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(shape)) if axis not in dropped]
    came = dict(zip(numbers.offset_dims, kept, strict=True))
    places = [came.get(place) for place in range(eqn.outvars[0].aval.ndim)]
    result = table.rearranged([None if axis in cut else axis for axis in places])
    return result._replace(kind=max(table.kind, index.kind))
