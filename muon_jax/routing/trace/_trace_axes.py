"""Routes read from the model: what the jaxpr of a loss does with every parameter."""

import inspect
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
from muon_jax.routing.trace._pieces import Kind, Value, own_view, union
from muon_jax.routing.trace._verdict import UNUSED, Verdict, verdict
from muon_jax.routing.trace._walk import MULTIPLIED, Walk
from muon_jax.trees._paths import named_leaves


@named("trace_axes")
def trace_axes(loss: Callable[..., Any], params: Any, /, *args: Any, **kwargs: Any) -> TracedAxes:
    """Reads from a loss how every parameter is a matrix, or why it is none.

    The loss is traced once with abstract values, so nothing is computed. In its jaxpr, the axes of
    a parameter that are summed over with data are the inputs of a matrix, those that come out are
    its outputs, and those of loops, experts and `vmap` are a batch; outputs that are cut and used
    apart are a split. A parameter that is looked up, that is multiplied or added entry by entry,
    that filters channel by channel or whose outputs go into a softmax is left to AdamW. Where the
    loss does not tell, the rules by name and shape of `matrix_axes` decide, and the reason says so.

    Args:
      loss: a function of the parameters, as the training step calls it, or any other function that
        applies the model, such as the model itself.
      params: its first argument: any pytree of arrays or of `jax.ShapeDtypeStruct`, or a module of
        Flax NNX, of which the `nnx.Param` are read. Leaves that are no floating-point arrays are
        passed on.
      args: its other arguments; arrays may be `jax.ShapeDtypeStruct`.
      kwargs: its keyword arguments, likewise.

    Returns:
      The views and the reasons: give it as `axes` to `muon`, `scale_by_muon`, `explain` or
      `label_params`, or print it.

    Raises:
      TypeError or ValueError: the arguments do not fit the loss, it cannot be traced, or there are
        no parameters. A parameter that the loss never uses is a warning.

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
    learned = [place for place, leaf in enumerate(leaves) if _is_learned(leaf)]
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
    verdicts = _verdicts(closed, kinds, by_name)
    read = [_leaf(found, each) for found, each in zip(by_name, verdicts, strict=True)]
    return TracedAxes(tuple(read), jax.tree.structure(kept))


def _is_learned(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def without_module(
    loss: Callable[..., Any], params: Any, args: Sequence[Any]
) -> tuple[Callable[..., Any], Any, Sequence[Any]]:
    """Parts a module of Flax NNX into parameters and the rest, which then is an argument."""
    nnx = sys.modules.get("flax.nnx")  # a module of NNX cannot be there without it
    if nnx is None or not isinstance(params, nnx.Module):
        return loss, params, args
    graph, state, rest = nnx.split(params, nnx.Param, ...)

    def pure(state: Any, rest: Any, *args: Any, **kwargs: Any) -> Any:
        return loss(nnx.merge(graph, state, rest), *args, **kwargs)

    return pure, state, (rest, *args)


def _traced(
    loss: Callable[..., Any], inputs: Any, learned: Sequence[int]
) -> tuple[Any, list[Kind]]:
    """Traces the loss, with whatever is no array held fixed; tells parameters from data.

    Raises:
      TypeError or ValueError: names what JAX or the loss raised.
    """
    leaves, structure = jax.tree.flatten(inputs)
    places = [place for place, leaf in enumerate(leaves) if _is_array(leaf)]

    def flat(arrays: Sequence[Any]) -> Any:
        given = dict(zip(places, arrays, strict=True))
        params, args, kwargs = structure.unflatten(
            [given.get(place, leaf) for place, leaf in enumerate(leaves)]
        )
        return [x for x in jax.tree.leaves(loss(params, *args, **kwargs)) if _is_array(x)]

    shapes = [jax.ShapeDtypeStruct(leaves[at].shape, leaves[at].dtype) for at in places]
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
    parameters = set(learned)
    return closed, [Kind.PARAM if place in parameters else Kind.DATA for place in places]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _verdicts(closed: Any, kinds: Sequence[Kind], by_name: Sequence[Route]) -> list[Verdict]:
    """Walks through the loss, once more if names tell that a product has tokens in it."""
    tokens: set[int] = set()
    verdicts = _walked(closed, kinds, by_name, tokens)
    tokens = {
        leaf
        for leaf, (each, found) in enumerate(zip(verdicts, by_name, strict=True))
        if MULTIPLIED in each.why and found.label == FALLBACK and found.rule != AMBIGUOUS
    }
    return _walked(closed, kinds, by_name, tokens) if tokens else verdicts


def _walked(
    closed: Any, kinds: Sequence[Kind], by_name: Sequence[Route], tokens: Collection[int]
) -> list[Verdict]:
    walk = Walk([found.shape for found in by_name])
    values = list[Value]()
    parameters = iter(enumerate(by_name))
    for kind in kinds:
        value = Value(kind)
        if kind is Kind.PARAM:
            leaf, found = next(parameters)
            own = own_view(leaf, found.shape)
            value = Value(kind, (own,), frozenset((leaf,)))
            if leaf in tokens:
                walk.notes[leaf]["state"].add(-1)
                value = Value(Kind.DATA)
        values.append(value)
    data = Kind.DATA in kinds
    results = walk.through(closed.jaxpr, values, Kind.CONST if data else Kind.DATA)
    ends = union(result.sources for result in results if result.kind is Kind.DATA) - walk.applied
    parameters = zip(_reaching(closed.jaxpr), kinds, strict=True)
    used = [reaches for reaches, kind in parameters if kind is Kind.PARAM]
    return [
        verdict(walk, leaf, found.dtype, ends) if used[leaf] else Verdict("", None, UNUSED)
        for leaf, found in enumerate(by_name)
    ]


def _reaching(jaxpr: Any) -> list[bool]:
    """Tells which arguments the results depend on."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed |= {atom for atom in eqn.invars if not isinstance(atom, Literal)}
    return [var in needed for var in jaxpr.invars]


def _leaf(by_name: Route, read: Verdict) -> TracedLeaf:
    """What the loss tells of a parameter, or else its name."""
    known = by_name.path, by_name.shape
    if read.is_read:
        return TracedLeaf(*known, read.axes, read.kind, read.why, True)
    why = f"{by_name.why}; the loss does not tell: {read.why}"
    return TracedLeaf(*known, by_name.axes, by_name.rule, why, False)
