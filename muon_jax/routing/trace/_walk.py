"""The walk through the jaxpr of a loss, with its loops, branches and calls."""

import itertools
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from muon_jax.routing.trace import _products, _steps
from muon_jax.routing.trace._notes import Notes
from muon_jax.routing.trace._pieces import CONST, DATA, Kind, Value, made, union

MAX_VIEWS = 8
"""How many views of data are followed, those of the latest parameters first."""


def walk(notes: Notes, jaxpr: Any, inputs: Sequence[Value], captured: Kind = CONST) -> list[Value]:
    """Walks through a jaxpr and returns what is known of its results.

    Args:
      notes: what happens to the parameters; updated.
      jaxpr: jaxpr of a loss, or of a part of it.
      inputs: what is known of its arguments.
      captured: the kind of its constants, which the loss has captured.
    """
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {var: Value(captured) for var in jaxpr.constvars}

    def value(atom: Any) -> Value:
        return Value() if isinstance(atom, Literal) else known.get(atom, Value())

    for eqn in jaxpr.eqns:
        results = _step(notes, eqn, [value(atom) for atom in eqn.invars])
        listed = results if isinstance(results, list) else [results] * len(eqn.outvars)
        for var, result in zip(eqn.outvars, listed, strict=True):
            known[var] = result
            if result.kind is DATA:
                sources = result.sources - notes.applied
                known[var] = result._replace(views=result.views[:MAX_VIEWS], sources=sources)
    return [value(atom) for atom in jaxpr.outvars]


def _step(notes: Notes, eqn: Any, values: list[Value]) -> Value | list[Value]:
    name = eqn.primitive.name
    if all(value.kind is CONST for value in values):
        tags = union(value.tags for value in values) | {name}
        kept = {"onehot"} if {"eq", "iota"} <= tags else tags & {"onehot", "iota"}
        return Value(tags=frozenset(kept))
    if name in _PASSED.split():
        return _fitted(values, eqn.invars, eqn.outvars)
    if name in _STEPS:
        return _STEPS[name](notes, eqn, values)
    if bodies := _bodies(eqn):
        return _call(notes, eqn, values, bodies)
    notes.lose(values, f"goes through {name}, which is not followed")
    return made(values)


def _bodies(eqn: Any) -> list[Any]:
    """Returns the jaxprs that a primitive runs on its operands: one, or one for every branch."""
    params, shapes = eqn.params, [atom.aval.shape for atom in eqn.invars]
    if eqn.primitive.name in ("cond", "while", "scan", "shard_map"):
        bodies = params.get("branches") or [params.get("body_jaxpr") or params["jaxpr"]]
        return [getattr(body, "jaxpr", body) for body in bodies]
    called = (value for value in params.values() if isinstance(value, ClosedJaxpr | Jaxpr))
    bodies = list[Any](getattr(body, "jaxpr", body) for body in called)
    fitting = [body for body in bodies if [var.aval.shape for var in body.invars] == shapes]
    return fitting[:1] if eqn.primitive.name != "pallas_call" else []


def _call(notes: Notes, eqn: Any, values: list[Value], bodies: Sequence[Any]) -> list[Value]:
    """Follows operands into the bodies of a call, condition or loop, and results out of them."""
    name = eqn.primitive.name
    skipped = eqn.params["cond_nconsts"] if name == "while" else int(name == "cond")
    values, atoms, ways = values[skipped:], eqn.invars[skipped:], list[list[Value]]()
    for body in bodies:
        inputs = _fitted(values, atoms, body.invars)
        if name in ("scan", "while"):
            inputs = _carried(notes, eqn, body, inputs)
        for value, atom, var in zip(values, atoms, body.invars, strict=True):
            if atom.aval.ndim > var.aval.ndim:
                notes.note("picked", value.pieces([0], out=False))
        ways.append(_fitted(walk(notes, body, inputs), body.outvars, eqn.outvars))
    if len(ways) == 1:
        return ways[0]
    return [
        made(way, itertools.chain(*(v.views for v in way)), parts=union(v.parts for v in way))
        for way in zip(*ways, strict=True)
    ]


def _fitted(values: Sequence[Value], old: Sequence[Any], new: Sequence[Any]) -> list[Value]:
    atoms = zip(values, old, new, strict=True)
    return [value.fitted(before.aval.shape, after.aval.shape) for value, before, after in atoms]


def _carried(notes: Notes, eqn: Any, body: Any, inputs: list[Value]) -> list[Value]:
    """Replaces by data what a loop carries and changes, even if it starts from a parameter.

    A loop carries the last of the inputs that it does not slice, and returns them first.
    """
    skipped = len(eqn.invars) - len(inputs)
    stop, count = (
        sum(whole.aval.ndim == each.aval.ndim for whole, each in zip(outer, inner, strict=True))
        for outer, inner in ((eqn.invars[skipped:], body.invars), (eqn.outvars, body.outvars))
    )
    inputs = list(inputs)
    for place, result in enumerate(body.outvars[:count], stop - count):
        if inputs[place].kind is not DATA and result is not body.invars[place]:
            notes.mark([inputs[place]], "state")
            inputs[place] = Value(DATA)
    return inputs


_PASSED = """
    convert_element_type reduce_precision stop_gradient copy copy_p device_put name pvary
    optimization_barrier sharding_constraint mesh_cast psum psum_invariant pmean ppermute
    all_gather all_gather_invariant reduce_scatter all_to_all
"""
"""Primitives that leave every operand as it is, or exchange shards of it."""

_FOLLOWED_BY = (
    (_steps.elementwise, _steps.ELEMENTWISE),
    (_steps.rearrange, "transpose broadcast_in_dim tile"),
    (_steps.reshape, "reshape squeeze expand_dims"),
    (_steps.cut, "slice split dynamic_slice"),
    (_steps.join, "concatenate stack"),
    (_steps.pad, "pad"),
    (_steps.reduce, _steps.REDUCTIONS),
    (_steps.rank, "sort top_k approx_top_k"),
    (_products.dot, "dot_general"),
    (_products.ragged_dot, "ragged_dot_general"),
    (_products.convolution, "conv_general_dilated"),
    (_products.gather, "gather"),
)
_STEPS = {name: step for step, names in _FOLLOWED_BY for name in names.split()}
