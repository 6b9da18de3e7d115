"""Routes read from the model: what the jaxpr of a loss does with every parameter."""

import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from muon_jax._checks import invalid, listed, named, refused
from muon_jax.routing._route import Route, as_pattern, route
from muon_jax.routing._rule import FALLBACK, Rule
from muon_jax.routing._traced import AMBIGUOUS, TracedAxes, TracedLeaf
from muon_jax.routing.trace._notes import Notes
from muon_jax.routing.trace._pieces import CONST, DATA, PARAM, Kind, Value, own_value, union
from muon_jax.routing.trace._verdict import UNUSED, is_vector, verdict
from muon_jax.routing.trace._walk import walk
from muon_jax.trees._paths import named_leaves


@named("trace_axes")
def trace_axes(loss: Callable[..., Any], params: Any, /, *args: Any, **kwargs: Any) -> TracedAxes:
    """Reads the view of every parameter as matrices from a loss, or why it is no matrix.

    The loss is traced once with abstract values, so nothing is computed. In its jaxpr, the axes of
    a parameter that are contracted with data are rows, the axes that remain are columns, and the
    axes of loops, experts and `vmap` are batch axes; outputs that are sliced and used separately
    are a split. Lookup tables, parameters that are multiplied or added elementwise, depthwise
    filters and layers whose outputs go into a softmax are left to AdamW. A parameter that the loss
    does not decide is routed by the rules of `matrix_axes` for names and shapes, with that reason.

    Args:
      loss: a function of the parameters, as the training step calls it, or any other function that
        applies the model, such as the model itself.
      params: its first argument: any pytree of arrays or of `jax.ShapeDtypeStruct`, or a module of
        Flax NNX, of which the `nnx.Param` are read. Leaves other than floating-point arrays get no
        route, and the loss receives them unchanged.
      args: its other arguments; arrays may be `jax.ShapeDtypeStruct`.
      kwargs: its keyword arguments, likewise.

    Returns:
      The views and the reasons, for the argument `axes` of `muon`, `scale_by_muon` or
      `label_params`, or to print.

    Raises:
      TypeError or ValueError: if the arguments do not fit the loss, the loss cannot be traced, or
        `params` has no floating-point array. A parameter that the loss never uses gives a warning.

    Examples:
      >>> import jax, muon_jax
      >>> params = {"w": jax.ShapeDtypeStruct((8, 4), "float32")}
      >>> batch = jax.ShapeDtypeStruct((2, 8), "float32")
      >>> muon_jax.trace_axes(lambda params, x: (x @ params["w"]).sum(), params, batch).axes
      {'w': MatrixAxes(rows=0, cols=1)}
    """
    read = read_routes(loss, params, args, kwargs)
    unused = [leaf.path for leaf in read.leaves if not leaf.read and leaf.why.endswith(UNUSED)]
    if unused:
        message = refused(
            f"the loss never uses {listed(map(repr, unused), 4)}",
            "Trace the loss that trains them, or take them out of params; until then their names "
            "decide",
        )
        warnings.warn(str(message), stacklevel=2)
    return read


def read_routes(
    loss: Callable[..., Any], params: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> TracedAxes:
    """Reads the routes as `trace_axes` does, without its warning."""
    if not callable(loss):
        raise invalid("loss", loss, "give a function of the parameters", TypeError)
    loss, params, args = without_module(loss, params, args)
    leaves, structure = jax.tree.flatten(params)
    kept = structure.unflatten([leaf if _is_learned(leaf) else None for leaf in leaves])
    learned = {place for place, leaf in enumerate(leaves) if _is_learned(leaf)}
    if not learned:
        raise refused(
            "params holds no floating-point array",
            "Give the parameters first, trace_axes(loss, params, *args), as the loss takes them",
            TypeError,
        )
    complex_leaves = [
        Rule(as_pattern(path), FALLBACK, "Muon orthogonalises real matrices", "complex")
        for path, leaf in named_leaves(kept)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
    ]
    by_name = jax.tree.leaves(route(kept, rules=complex_leaves, ambiguous="fallback"))
    closed, kinds = _traced(loss, (params, args, kwargs), learned)
    return TracedAxes(tuple(_verdicts(closed, kinds, by_name)), jax.tree.structure(kept))


def _is_learned(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def without_module(
    loss: Callable[..., Any], params: Any, args: Sequence[Any]
) -> tuple[Callable[..., Any], Any, Sequence[Any]]:
    """Splits a module of Flax NNX into parameters and the rest, which becomes an argument."""
    nnx = sys.modules.get("flax.nnx")  # loaded wherever a module of NNX exists
    if nnx is None or not isinstance(params, nnx.Module):
        return loss, params, args
    graph, state, rest = nnx.split(params, nnx.Param, ...)

    def pure(state: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        return loss(nnx.merge(graph, state, rest), *args, **kwargs)

    return pure, state, (rest, *args)


def _traced(
    loss: Callable[..., Any], inputs: Any, learned: Collection[int]
) -> tuple[Any, list[Kind]]:
    """Traces the loss, with all leaves but arrays static; returns also the kind of every array.

    Raises:
      TypeError or ValueError: if JAX or the loss raised an error, which the message quotes.
    """
    leaves, structure = jax.tree.flatten(inputs)
    shapes = [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if _is_array(leaf) else None for leaf in leaves
    ]

    def flat(arrays: Sequence[Any]) -> Any:
        pairs = zip(arrays, leaves, strict=True)
        given = [leaf if array is None else array for array, leaf in pairs]
        params, args, kwargs = structure.unflatten(given)
        return [x for x in jax.tree.leaves(loss(params, *args, **kwargs)) if _is_array(x)]

    params, args, kwargs = inputs
    try:
        inspect.signature(loss).bind(params, *args, **kwargs)
        with named(None, inside=True):
            closed = jax.make_jaxpr(flat)(shapes)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise refused(
            f"the loss cannot be traced, {type(error).__name__}: {_first_line(error)}",
            "Give it the arguments with which jax.grad(loss) runs; strings, numbers and functions "
            "are held fixed, arrays are abstract",
            kind,
        ) from error
    arrays = [place for place, shape in enumerate(shapes) if shape is not None]
    return closed, [PARAM if place in learned else DATA for place in arrays]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _verdicts(closed: Any, kinds: Sequence[Kind], by_name: Sequence[Route]) -> list[TracedLeaf]:
    """Walks through the loss and returns what every parameter is."""
    shapes = [found.shape for found in by_name]
    excluded = [found.label == FALLBACK and found.rule != AMBIGUOUS for found in by_name]
    tokens = [leaf for leaf, shape in enumerate(shapes) if excluded[leaf] and not is_vector(shape)]
    notes = Notes(shapes, tokens)
    own = itertools.starmap(own_value, enumerate(shapes))
    values = [next(own) if kind is PARAM else Value(kind) for kind in kinds]
    results = walk(notes, closed.jaxpr, values, CONST if DATA in kinds else DATA)
    ends = union(result.sources for result in results if result.kind is DATA) - notes.applied
    used = itertools.compress(_reaching(closed.jaxpr), [kind is PARAM for kind in kinds])
    return [
        verdict(notes, leaf, found, is_used, leaf in ends)
        for leaf, (found, is_used) in enumerate(zip(by_name, used, strict=True))
    ]


def _reaching(jaxpr: Any) -> list[bool]:
    """Returns for every argument whether the results depend on it."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed |= {atom for atom in eqn.invars if not isinstance(atom, Literal)}
    return [var in needed for var in jaxpr.invars]
