"""`explain`: what an optimizer does with every parameter."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import optax

from muon_jax._checks import invalid, named, refused
from muon_jax._types import Orthogonalizer
from muon_jax.explain._compare import differences
from muon_jax.explain._explanation import ExplainedLeaf, Explanation
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.routing._notices import notices
from muon_jax.routing._route import Route
from muon_jax.routing.trace._trace_axes import read_routes, without_module
from muon_jax.transforms._orthogonalize import flops_of
from muon_jax.transforms._record import RecordedLeaf, recording
from muon_jax.transforms._scale import shape_scale
from muon_jax.trees._paths import kind_of_path, named_leaves, owner_of

_ADAM_MOMENTS = 2
_PLATFORMS = MappingProxyType({"cpu": "CPU", "tpu": "TPU", "gpu": "GPU"})


@named("explain")
def explain(
    params: Any,
    tx: optax.GradientTransformation,
    *,
    loss: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
) -> Explanation:
    """Returns what an optimizer does with every parameter, before training.

    The optimizer may be `muon`, `muon_clip`, a recipe, or any of them inside `optax.chain`,
    `optax.MultiSteps`, `optax.inject_hyperparams`, `optax.multi_transform` and other wrappers. Its
    `init` runs under `jax.eval_shape`, so the parameters may be shapes of a model that does not fit
    on this machine.

    With a loss, the table has a column with the routes that `trace_axes` reads from it, and marks
    with `!=` every parameter that `tx` routes or views differently. For an optimizer with
    `axes=trace_axes(loss, ...)` nothing is marked.

    Args:
      params: any pytree of arrays or of `jax.ShapeDtypeStruct`, or a Flax NNX module, whose
        `nnx.Param` are trained.
      tx: the optimizer for training.
      loss: a function of the parameters, as for `trace_axes`; None compares nothing.
      args: a tuple of the other arguments of the loss; arrays may be `jax.ShapeDtypeStruct`.

    Returns:
      An `Explanation`: a table that wraps to the width of the terminal and renders in notebooks,
      with all numbers in `leaves` and `to_dict()`.

    Raises:
      TypeError or ValueError: for parameters that `tx.init` does not accept, if `tx` contains no
        optimizer of this library, for a loss that cannot be traced, and for `args` without `loss`.

    Examples:
      >>> import jax, muon_jax
      >>> params = {"query": {"kernel": jax.ShapeDtypeStruct((64, 4, 16), "float32")}}
      >>> muon_jax.explain(params, muon_jax.muon(3e-4)).leaves[0].matrices
      ((4, 64, 16),)
      >>> loss = lambda params, x: jax.numpy.tensordot(x, params["query"]["kernel"], 1).sum()
      >>> batch = jax.ShapeDtypeStruct((2, 64), "float32")
      >>> muon_jax.explain(params, muon_jax.muon(3e-4), loss=loss, args=(batch,)).differences
      ()
    """
    if not callable(getattr(tx, "init", None)):
        raise invalid("tx", tx, "give an optimizer, such as muon_jax.muon(3e-4)", TypeError)
    if not isinstance(args, Sequence):
        remedy = "give a tuple of the arguments of the loss after the parameters"
        raise invalid("args", args, remedy, TypeError)
    if args and loss is None:
        raise refused("args are given without a loss", "Give loss=..., or leave args out")
    traced = None if loss is None else read_routes(loss, params, args, {})
    _, params, _ = without_module(lambda: None, params, args)
    arrays = dict(named_leaves(params))
    for path, leaf in arrays.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            problem = f"'{path}' is a {type(leaf).__name__}, not an array"
            functions = "`nnx.state(model, nnx.Param)` or `eqx.filter(model, eqx.is_inexact_array)`"
            remedy = f"Give only the arrays that are trained, such as {functions}"
            raise refused(problem, remedy, TypeError)
    with recording() as record, named(None, inside=True):
        # A new function, because JAX caches the trace of `tx.init`.
        state = jax.eval_shape(lambda tree: tx.init(tree), params)
    if arrays and not record.leaves:
        raise refused(
            "tx contains no optimizer of muon_jax that routes parameters",
            "Give muon_jax.muon(...), muon_jax.muon_clip(...), a recipe, or a chain with one",
        )
    sizes = _state_bytes(state, arrays)
    leaves = [
        _explained(path, leaf, record.leaves.get(path), record.factors.get(path, 1.0), sizes[path])
        for path, leaf in arrays.items()
    ]
    known = list(record.leaves.values())
    if traced is not None:
        by_path = {leaf.path: leaf for leaf in traced.leaves}
        differ = differences([leaf.route for leaf in known], traced.leaves)
        leaves = [
            dataclasses.replace(leaf, traced=by_path.get(leaf.path), differs=leaf.path in differ)
            for leaf in leaves
        ]
    orthogonalizer = known[0].orthogonalizer if known else newton_schulz()
    return Explanation(
        tuple(leaves),
        sum(_ADAM_MOMENTS * _bytes(leaf) for leaf in arrays.values()),
        (*notices([leaf.route for leaf in known]), *record.notices),
        _products(orthogonalizer, leaves),
    )


def _explained(
    path: str, leaf: Any, known: RecordedLeaf | None, factor: float, state_bytes: int
) -> ExplainedLeaf:
    """Describes one parameter; `known` is None if an optimizer of another library trains it."""
    if known is None:
        why = "an optimizer of another library"
        other = Route(path, leaf.shape, leaf.dtype, "other", None, "other", why)
        known = RecordedLeaf(other, newton_schulz(), "none", None)
    found = known.route
    axes = known.axes or found.axes
    matrices = axes.matrix_shapes(found.shape) if axes else ()
    of_shape, flops = shape_scale(known.scale), flops_of(known.orthogonalizer)
    costs = [flops(rows, cols) * count for count, rows, cols in matrices] if flops else []
    return ExplainedLeaf(
        path=path,
        shape=tuple(leaf.shape),
        dtype=str(leaf.dtype),
        label=found.label,
        rule=found.rule,
        why=found.why + ("" if axes == found.axes else "; each head is orthogonalised by itself"),
        axes=axes,
        matrices=matrices,
        scale=tuple(of_shape(rows, cols) if of_shape else None for _, rows, cols in matrices),
        weight_decay=known.weight_decay,
        learning_rate_multiplier=known.factor * factor,
        flops=None if matrices and flops is None else sum(costs),
        state_bytes=state_bytes,
        sharding=_partition(leaf),
    )


def _state_bytes(state: Any, arrays: Mapping[str, Any]) -> dict[str, int]:
    """Returns the bytes of a state by parameter.

    A path of the state contains that of its parameter, or that of several with `#` for numbers.
    """
    sizes, kinds = dict.fromkeys(arrays, 0), dict[str, list[str]]()
    for path in arrays:
        kinds.setdefault(kind_of_path(path), []).append(path)
    for path, leaf in named_leaves(state):
        owner = owner_of(path, sizes)
        if owner is None and "" in sizes and leaf.shape == arrays[""].shape:
            owner = ""
        owners = kinds.get(owner_of(path, kinds) or "", []) if owner is None else [owner]
        for each in owners:
            sizes[each] += _bytes(leaf) // len(owners)
    return sizes


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _products(
    orthogonalizer: Orthogonalizer, leaves: Iterable[ExplainedLeaf]
) -> tuple[tuple[str, str], ...]:
    """Returns the number formats of the operands of products by platform, if known."""
    on = getattr(orthogonalizer, "on", None)
    sides = {(rows, cols) for leaf in leaves for _, rows, cols in leaf.matrices}
    if on is None or not sides:
        return ()
    return tuple(
        (name, ", ".join(sorted({on(platform).operands(*pair) or "float32" for pair in sides})))
        for platform, name in _PLATFORMS.items()
    )


def _partition(leaf: Any) -> str | None:
    spec = getattr(getattr(leaf, "sharding", None), "spec", None)
    return None if spec is None or all(axis is None for axis in spec) else str(spec)
