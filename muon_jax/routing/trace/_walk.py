"""The walk through the jaxpr of a loss: contractions, lookups, loops and calls."""

import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from muon_jax.routing.trace._pieces import (
    Dim,
    Kind,
    Piece,
    Value,
    View,
    as_outputs,
    at,
    distinct,
    only,
    resized,
    union,
)
from muon_jax.routing.trace._steps import (
    CONST,
    DATA,
    ELEMENTWISE,
    PARAM,
    PASSED,
    Steps,
    made,
    rearranged,
)

MAX_VIEWS = 8
"""How many views of an activation are followed, the latest producers first."""

MULTIPLIED = "is multiplied with another parameter"
"""Why a parameter is lost if the other may be what the model learns instead of an input."""


class Walk(Steps):
    """Follows parameters through a whole loss."""

    def through(self, jaxpr: Any, inputs: Sequence[Value], captured: Kind = CONST) -> list[Value]:
        """Walks through a jaxpr and returns what is known of its results.

        Args:
          jaxpr: of a loss, or of a part of it.
          inputs: what is known of its arguments.
          captured: what the constants count as that it has taken from around it.
        """
        jaxpr = _opened(jaxpr)
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        known.update((var, Value(captured)) for var in jaxpr.constvars)

        def value(atom: Any) -> Value:
            return Value() if isinstance(atom, Literal) else known.get(atom, Value())

        for eqn in jaxpr.eqns:
            results = self._step(eqn, [value(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _step(self, eqn: Any, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if all(value.kind is CONST for value in values):
            tags = union(value.tags for value in values) | {name}
            kept = {"onehot"} if {"eq", "iota"} <= tags else tags & {"onehot", "iota"}
            return [Value(tags=frozenset(kept))] * len(eqn.outvars)
        if name in _STEPS:
            results = _STEPS[name](self, eqn, values)
        elif name in PASSED:
            results = values
        elif name in ELEMENTWISE:
            results = self._elementwise(eqn, values)
        elif "axes" in eqn.params and name.startswith(("reduce_", "arg")):
            results = self._reduce(eqn, values)
        elif name.startswith(("all_gather", "reduce_scatter", "all_to_all")):
            results = [
                _resharded(*each) for each in zip(values, eqn.invars, eqn.outvars, strict=True)
            ]
        elif (inner := _called(eqn)) is not None:
            results = self.through(inner, values)
        else:
            for value in values:
                self._lose(value, f"goes through {name}, which is not followed")
            results = made(values)
        listed = results if isinstance(results, list) else [results] * len(eqn.outvars)
        return [self._trimmed(value) for value in listed]

    def _trimmed(self, value: Value) -> Value:
        if value.kind is not DATA:
            return value
        return value._replace(views=value.views[:MAX_VIEWS], sources=value.sources - self.applied)

    # Contractions

    def _dot(self, eqn: Any, values: list[Value]) -> Value:
        contracted, batch = eqn.params["dimension_numbers"]
        free = [
            [axis for axis in range(atom.aval.ndim) if axis not in (*summed, *repeated)]
            for atom, summed, repeated in zip(eqn.invars, contracted, batch, strict=True)
        ]
        sides = self._without_tokens(values, free)
        if all(side.kind is DATA for side in sides):
            self._compare(sides, contracted)
        gaps = [[None] * len(axes) for axes in free]
        places = [*batch[0], *free[0], *gaps[1]], [*batch[1], *gaps[0], *free[1]]
        views = list[View]()
        for mine, side in enumerate(sides):
            summed, repeated = ((axes[mine], axes[1 - mine]) for axes in (contracted, batch))
            left = self._summed(side, sides[1 - mine], summed, repeated, free[mine])
            views += rearranged(left, places[mine]).views
        parameters = [side for side in sides if side.kind is PARAM]
        result = made(sides, views)
        return Value(DATA, result.views, parameters[0].sources) if len(parameters) == 1 else result

    def _summed(self, side: Value, other: Value, summed: Any, batch: Any, free: list[int]) -> Value:
        """Notes what a product does to one side, and returns what of it is in the result.

        Args:
          side: whose pieces are followed.
          other: what it is multiplied with.
          summed: the dimensions summed over, of this side and of the other.
          batch: the batch dimensions, likewise.
          free: the dimensions of this side that remain.
        """
        if other.kind is PARAM or side.kind is CONST:
            return side if side.kind is PARAM else side._replace(views=only(side.views, out=True))
        along = [own for own, its in zip(*summed, strict=True) if _repeats(other.views, its)]
        rows = [axis for axis in summed[0] if axis not in along]
        self._use(side, (rows, free, [*batch[0], *along]))
        if side.kind is PARAM:
            self.applied |= other.sources
            for own, its in zip(*batch, strict=True):
                if any(at(side.views, [own], out=False)):
                    self._note("repeated", filter(self._is_axis, at(other.views, [its], out=True)))
            if "onehot" in other.tags:
                self._note("indexed", at(side.views, summed[0], out=False))
                return side
            if not summed[0]:
                self._mark(side, "elementwise")
        return _outputs(side, batch[0])

    def _is_axis(self, piece: Piece) -> bool:
        """Tells whether a piece is a whole axis of its parameter."""
        return piece.size == self.shapes[piece.leaf][piece.axis] and not piece.repeats

    def _without_tokens(self, values: list[Value], free: list[list[int]]) -> list[Value]:
        """Tells learned tokens, spread over a batch, from what they are multiplied with."""
        if any(value.kind is not PARAM for value in values):
            return values
        spread = [bool(value.spread & set(axes)) for value, axes in zip(values, free, strict=True)]
        if sum(spread) == 1:
            self._mark(values[spread.index(True)], "state")
            return [
                Value(DATA) if each else value for value, each in zip(values, spread, strict=True)
            ]
        for value in values:
            self._lose(value, MULTIPLIED)
        return values

    def _compare(self, sides: Sequence[Value], contracted: Any) -> None:
        """Notes outputs that are summed over with outputs of another layer.

        With a softmax before, as in linear attention, these are features and no alternatives.
        """
        for axes in zip(*contracted, strict=True):
            here, there = (
                {p.leaf for p in at(side.views, [axis], out=True) if self._is_feature(p)}
                for side, axis in zip(sides, axes, strict=True)
            )
            for leaf in here | there if here and there and here != there else ():
                self.notes[leaf]["features"].add(-1)

    def _is_feature(self, piece: Piece) -> bool:
        return not piece.repeats and piece.axis not in self.notes[piece.leaf]["repeated"]

    def _ragged_dot(self, eqn: Any, values: list[Value]) -> Value:
        data, weights = values[:2]
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (_, summed), _ = numbers.dot_dimension_numbers
        groups = numbers.rhs_group_dimensions
        if not groups:
            self._lose(weights, "goes through a ragged product that is not followed")
        free = [axis for axis in range(eqn.invars[1].aval.ndim) if axis not in (*summed, *groups)]
        self._use(weights, (summed, free, groups))
        self.applied |= data.sources
        gap = [None] * (eqn.outvars[0].aval.ndim - len(free))
        return rearranged(_outputs(weights, groups), [*gap, *free])._replace(kind=DATA)

    def _convolution(self, eqn: Any, values: list[Value]) -> Value:
        data, weights = values
        numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
        outputs, inputs, *window = numbers.rhs_spec
        rank, alone = eqn.outvars[0].aval.ndim, eqn.invars[1].aval.shape[inputs] == 1
        self._lose(data, "is convolved as data are")
        self.applied |= data.sources if weights.kind is PARAM else set()
        for view in weights.views:
            stack, left = _grouped(view[outputs], groups)
            apart = list(view)
            apart[outputs] = view[outputs][len(stack) :]
            each = weights._replace(views=((*apart, stack),))
            roles = [inputs, *window], [outputs], [rank]
            self._use(each, roles, groups=left, depthwise=left > 1 and alone)
        places: list[list[int | None]] = [[None] * rank, [None] * rank]
        for place, axis in zip(places, (numbers.lhs_spec[1], outputs), strict=True):
            place[numbers.out_spec[1]] = axis
        views = rearranged(_outputs(weights, []), places[1]).views
        if alone and eqn.outvars[0].aval.shape[numbers.out_spec[1]] == groups > 1:
            kept = data._replace(views=only(data.views, out=True))  # channels are what they were
            views += rearranged(kept, places[0]).views
        return Value(DATA, views, weights.sources)

    # Lookups

    def _gather(self, eqn: Any, values: list[Value]) -> Value:
        (table, index), numbers = values, eqn.params["dimension_numbers"]
        sizes, shape = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
        cut = [axis for axis, size in enumerate(sizes) if size < shape[axis]]
        picked = [axis for axis in numbers.start_index_map if axis in cut]
        if index.kind is DATA:
            self._choose(table.views, picked)
            self.applied |= index.sources
        word = "indexed" if index.kind is DATA else "listed"
        self._note(word, at(table.views, picked, out=False))
        dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept = [axis for axis in range(len(shape)) if axis not in dropped]
        came = dict(zip(numbers.offset_dims, kept, strict=True))
        places = [came.get(place) for place in range(eqn.outvars[0].aval.ndim)]
        result = rearranged(table, [None if axis in cut else axis for axis in places])
        return result._replace(kind=max(table.kind, index.kind))

    # Loops and calls

    def _scan(self, eqn: Any, values: list[Value]) -> list[Value]:
        body = _opened(eqn.params["jaxpr"])
        is_sliced = [
            [atom.aval.ndim > each.aval.ndim for atom, each in zip(whole, inner, strict=True)]
            for whole, inner in ((eqn.invars, body.invars), (eqn.outvars, body.outvars))
        ]
        first, carry = (sliced.count(False) for sliced in is_sliced)
        consts = first - carry
        inputs = [*values[:consts], *self._carried(body, values, consts, first)]
        for value, atom in zip(values[first:], eqn.invars[first:], strict=True):
            self._note("picked", at(value.views, [0], out=False))
            inputs.append(rearranged(value, range(1, atom.aval.ndim))._replace(parts=frozenset()))
        results = self.through(body, inputs)
        for place, var in enumerate(eqn.outvars[carry:], carry):
            stacked = rearranged(results[place], [None, *range(var.aval.ndim - 1)])
            results[place] = stacked._replace(parts=frozenset())
        return results

    def _while(self, eqn: Any, values: list[Value]) -> list[Value]:
        body, inputs = eqn.params["body_jaxpr"], values[eqn.params["cond_nconsts"] :]
        consts = eqn.params["body_nconsts"]
        return self.through(
            body, inputs[:consts] + self._carried(body, inputs, consts, len(inputs))
        )

    def _carried(self, body: Any, values: list[Value], start: int, stop: int) -> list[Value]:
        """What a loop carries and changes is an activation, also if a parameter starts it."""
        body, carried = _opened(body), list[Value]()
        for place in range(start, stop):
            value = values[place]
            if value.kind is not DATA and body.outvars[place - start] is not body.invars[place]:
                self._mark(value, "state")
                value = Value(DATA)
            carried.append(value)
        return carried

    def _cond(self, eqn: Any, values: list[Value]) -> list[Value]:
        branches = [self.through(branch, values[1:]) for branch in eqn.params["branches"]]
        return [
            made(
                ways,
                [view for way in ways for view in way.views],
                parts=union(w.parts for w in ways),
            )
            for ways in zip(*branches, strict=True)
        ]

    def _shard_map(self, eqn: Any, values: list[Value]) -> list[Value]:
        inner = _opened(eqn.params["jaxpr"])
        local = [_resharded(*each) for each in zip(values, eqn.invars, inner.invars, strict=True)]
        results = zip(self.through(inner, local), inner.outvars, eqn.outvars, strict=True)
        return [_resharded(*each) for each in results]


_STEPS = {
    "dot_general": Walk._dot,
    "ragged_dot_general": Walk._ragged_dot,
    "conv_general_dilated": Walk._convolution,
    "gather": Walk._gather,
    "transpose": Walk._transpose,
    "reshape": Walk._reshape,
    "squeeze": Walk._reshape,
    "expand_dims": Walk._reshape,
    "broadcast_in_dim": Walk._broadcast,
    "tile": Walk._broadcast,
    "slice": Walk._slice,
    "split": Walk._split,
    "dynamic_slice": Walk._dynamic_slice,
    "concatenate": Walk._concatenate,
    "stack": Walk._concatenate,
    "pad": Walk._pad,
    "sort": Walk._ranked,
    "top_k": Walk._ranked,
    "approx_top_k": Walk._ranked,
    "scan": Walk._scan,
    "while": Walk._while,
    "cond": Walk._cond,
    "shard_map": Walk._shard_map,
}


def _opened(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _called(eqn: Any) -> Any:
    """The jaxpr that a step calls with its own operands, if there is one."""
    shapes = [atom.aval.shape for atom in eqn.invars]
    for value in eqn.params.values() if eqn.primitive.name != "pallas_call" else ():
        if isinstance(value, ClosedJaxpr | Jaxpr):
            inner = _opened(value)
            if [var.aval.shape for var in inner.invars] == shapes:
                return inner
    return None


def _outputs(weights: Value, batch: Sequence[int]) -> Value:
    """Turns a parameter that was applied to data into the outputs computed with it."""
    views = (
        tuple(as_outputs(dim, repeats=axis in batch) for axis, dim in enumerate(view))
        for view in weights.views
    )
    return weights._replace(views=distinct(views), parts=frozenset())


def _repeats(views: Sequence[View], axis: int) -> bool:
    """Tells whether a dimension of an activation is a batch axis of what has made it."""
    pieces = [list(at([view], [axis], out=True)) for view in views]
    return any(each and all(piece.repeats for piece in each) for each in pieces)


def _resharded(value: Value, old: Any, new: Any) -> Value:
    views = (resized(view, old.aval.shape, new.aval.shape) for view in value.views)
    return value._replace(views=distinct(views), spread=frozenset())


def _grouped(dim: Dim, groups: int) -> tuple[Dim, int]:
    """The leading axes of outputs that are a stack, as `vmap` lays them, and the groups in each."""
    for place in range(len(dim) - 1, 0, -1):
        stack = math.prod(piece.size for piece in dim[:place])
        axes, others = ({piece.axis for piece in part} for part in (dim[:place], dim[place:]))
        if groups % stack == 0 and axes.isdisjoint(others):
            return dim[:place], groups // stack
    return (), groups
