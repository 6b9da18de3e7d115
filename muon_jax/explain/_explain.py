"""What Muon will do with every parameter, said before training starts."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from muon_jax import _checks
from muon_jax._types import Mask, Orthogonalizer, ScalarOrSchedule, ShapeScale
from muon_jax.explain._explanation import ExplainedLeaf, Explanation
from muon_jax.optimizers._muon import rate_by_default
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.routing._notices import notices
from muon_jax.routing._route import Ambiguous, Route, check_rules, route
from muon_jax.routing._rule import FALLBACK, MUON, Rule
from muon_jax.routing._traced import AxesLike
from muon_jax.transforms._per_tree import mask_by_leaf
from muon_jax.transforms._scale import check_scale, shape_scale
from muon_jax.transforms._scale_by_path import check_multipliers, multipliers_of

_CALL = "explain"
_ADAM_MOMENTS = 2
_PLATFORMS = MappingProxyType({"cpu": "CPU", "tpu": "TPU", "gpu": "GPU"})


def explain(
    params: Any,
    *,
    rules: Iterable[Rule] = (),
    axes: AxesLike = None,
    ambiguous: Ambiguous = "error",
    orthogonalizer: Orthogonalizer | None = None,
    scale: str | ShapeScale = "match_rms",
    momentum_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 0.1,
    weight_decay_mask: Mask | None = None,
    learning_rate_multipliers: Mapping[str, float] = MappingProxyType({}),
    fallback_weight_decay: ScalarOrSchedule | None = None,
    fallback_weight_decay_mask: Mask | None = None,
) -> Explanation:
    """Says what `muon` would do with every parameter, before it does.

    The arguments are those of `muon` that the table depends on, with the same defaults. What Muon
    does not take is counted as AdamW's. Only shapes are looked at, so the parameters may be what
    `jax.eval_shape` returns for a model far larger than this machine.

    Args:
      params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
      rules: rules of your own, tried first.
      axes: views that come before the default rules, as for `muon`.
      ambiguous: what becomes of an array with several candidate views: `"error"` or `"fallback"`.
      orthogonalizer: its `flops(rows, cols)` tells the cost, if it has one; None is
        `newton_schulz()`.
      scale: size of the updates, as for `scale_by_muon`.
      momentum_dtype: dtype of the momentum; None is that of the parameter.
      weight_decay: decay of the matrices.
      weight_decay_mask: which of them decay: a tree of booleans, or a function from the parameters
        to one; None is all.
      learning_rate_multipliers: factors on the step by pattern, as for `muon`.
      fallback_weight_decay: decay of the others; None is no decay.
      fallback_weight_decay_mask: which of them decay; None is all.

    Returns:
      An `Explanation`: it prints as a table, which rich colours and notebooks render, and has every
      number in `leaves` and `to_dict()`.

    Raises:
      TypeError or ValueError: for parameters that `muon` would refuse at `init`, or an unknown
        scale.

    Examples:
      >>> import jax, muon_jax
      >>> params = {"query": {"kernel": jax.ShapeDtypeStruct((64, 4, 16), "float32")}}
      >>> muon_jax.explain(params).leaves[0].matrices
      ((1, 64, 64),)
    """
    check_scale(_CALL, scale)
    momentum_dtype = _checks.check_float_dtype(_CALL, "momentum_dtype", momentum_dtype)
    check_multipliers(_CALL, learning_rate_multipliers)
    if fallback_weight_decay is None:
        fallback_weight_decay = 0.0
    _checks.check_non_negative(_CALL, "weight_decay", weight_decay)
    _checks.check_non_negative(_CALL, "fallback_weight_decay", fallback_weight_decay)
    rules = check_rules(rules, ambiguous, _CALL)
    routes = route(params, rules=rules, axes=axes, ambiguous=ambiguous, call=_CALL)
    decays = {
        MUON: _decays("weight_decay_mask", weight_decay, weight_decay_mask, params),
        FALLBACK: _decays(
            "fallback_weight_decay_mask", fallback_weight_decay, fallback_weight_decay_mask, params
        ),
    }
    multipliers = jax.tree.leaves(
        multipliers_of(
            params,
            learning_rate_multipliers,
            call=_CALL,
            unmatched=jax.tree.map(lambda found: rate_by_default(found, scale), routes),
        )
    )
    factor = shape_scale(scale)
    told: Callable[[int, int], int | None]
    told = functools.cache(getattr(orthogonalizer or newton_schulz(), "flops", _untold))

    def explained(index: int, found: Route, leaf: Any) -> ExplainedLeaf:
        matrices = found.axes.matrix_shapes(found.shape) if found.axes else ()
        costs = [told(rows, cols) for _, rows, cols in matrices]
        known = [cost * count for cost, (count, _, _) in zip(costs, matrices, strict=True) if cost]
        return ExplainedLeaf(
            path=found.path,
            shape=found.shape,
            dtype=str(found.dtype),
            label=found.label,
            rule=found.rule,
            why=found.why,
            axes=found.axes,
            matrices=matrices,
            scale=tuple(factor(rows, cols) if factor else None for _, rows, cols in matrices),
            weight_decay=decays[found.label][index] if found.label in decays else None,
            learning_rate_multiplier=multipliers[index],
            flops=None if None in costs else sum(known),
            state_bytes=_state_bytes(found, momentum_dtype),
            sharding=_partition(leaf),
        )

    leaves = [
        explained(index, found, leaf)
        for index, (found, leaf) in enumerate(
            zip(jax.tree.leaves(routes), jax.tree.leaves(params), strict=True)
        )
    ]
    alone = sum(_ADAM_MOMENTS * _bytes(found) for found in jax.tree.leaves(routes))
    return Explanation(
        tuple(leaves),
        alone,
        tuple(notices(jax.tree.leaves(routes))),
        _products(orthogonalizer or newton_schulz(), leaves),
    )


def _products(
    orthogonalizer: Orthogonalizer, leaves: Iterable[ExplainedLeaf]
) -> tuple[tuple[str, str], ...]:
    """Returns the number formats of the operands of products by platform, if they are known."""
    on = getattr(orthogonalizer, "on", None)
    sides = {(rows, cols) for leaf in leaves for _, rows, cols in leaf.matrices}
    if on is None or not sides:
        return ()
    return tuple(
        (name, ", ".join(sorted({on(platform).operands(*pair) or "float32" for pair in sides})))
        for platform, name in _PLATFORMS.items()
    )


def _untold(rows: int, cols: int) -> None:
    """Stands in for an orthogonalizer that does not know its cost."""
    del rows, cols


def _decays(
    argument: str, decay: ScalarOrSchedule, mask: Mask | None, params: Any
) -> list[float | str]:
    """The decay of every leaf; `argument` is that of the mask."""
    shown = "schedule" if callable(decay) else float(decay)
    kept = mask_by_leaf(_CALL, argument, params, True if mask is None else mask)
    return [shown if keep else 0.0 for keep in kept]


def _bytes(found: Route, dtype: Any = None) -> int:
    return math.prod(found.shape) * jnp.dtype(dtype or found.dtype).itemsize


def _state_bytes(found: Route, momentum_dtype: Any) -> int:
    if found.label == MUON:
        return _bytes(found, momentum_dtype)
    if found.label != FALLBACK:
        return 0
    return _ADAM_MOMENTS * _bytes(found, jnp.float32 if found.dtype == jnp.float16 else None)


def _partition(leaf: Any) -> str | None:
    spec = getattr(getattr(leaf, "sharding", None), "spec", None)
    return None if spec is None or all(axis is None for axis in spec) else str(spec)
