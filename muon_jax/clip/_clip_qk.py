"""QK-Clip: keeps the attention logits of every head in bounds by scaling its weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from muon_jax import _checks
from muon_jax._door import public
from muon_jax._types import wide_dtype
from muon_jax.clip._plan import Scaling, plan
from muon_jax.clip._targets import QKPart, QKTarget, Shape
from muon_jax.mesh._specs import replicated
from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._same_leaves import params_beside
from muon_jax.trees._paths import is_placeholder, map_named, named_leaves


class QKClipState(NamedTuple):
    """What QK-Clip has seen since it began; counts stay at the largest int32 once there."""

    clipped_heads: Int[Array, ""]
    """Heads scaled, summed over layers and steps."""
    nonfinite_heads: Int[Array, ""]
    """Heads left alone because their maximum was NaN or +inf, summed likewise."""
    max_logit: Float[Array, ""]
    """The largest finite logit; −inf before the first."""


@public("clip_qk")
def clip_qk(
    threshold: float, targets: Mapping[str, QKTarget] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales the query and key weights of every head whose largest logit exceeds a threshold.

    For a head with S > τ and γ = τ/S, the update u of a weight W becomes γ^p·(W + u) − W, so that
    parameters plus update are the clipped weights. p is ½ for query and key, and 1 for a query
    whose key is shared with other heads (see `QKTarget`); biases go with their kernels. The logits
    of the head thereby fall by γ and those of no other head change; where no factor applies the
    update passes bit for bit. It belongs at the end of a chain, behind the learning rate.

    S is what the forward pass of this step measured, so the next one may stand above τ by what
    the step itself adds. The difference to W is exact to the precision of W and of the updates: a
    head clipped by many powers of ten at once lands on τ only as precisely as that.

    Args:
      threshold: τ, above 0. Kimi K2 uses 100.
      targets: `QKTarget`s by the path of their layer in the parameters, or by a pattern of paths
        as in `Rule`, such as `"blocks/*/attn"`. None infers them for the attention of Flax, NNX
        and Linen, and for `qkv` kernels of shape (inputs, 3, heads, head_dim), each alone or
        stacked by a scan along axis 0.

    Returns:
      A transformation whose `update` takes `max_logits=`, a tree with the targets' paths and
      (heads,) maxima, or (layers, heads) where a scan stacks layers; for parameters that are one
      layer the array alone. NaN and +inf leave their heads unclipped and are counted in the state.
      With accumulated gradients, pass the largest of all micro-batches.

    Raises:
      ValueError: no parameter fits a target, or a mask hides one that does; or `max_logits` is
        missing, lacks a target, names a layer that is none, or has a wrong shape.

    Examples:
      >>> params = {"attn": {"query": {"kernel": jnp.ones((8, 2, 4))},
      ...                    "key": {"kernel": jnp.ones((8, 2, 4))}}}
      >>> tx = optax.chain(optax.sgd(0.1), clip_qk(100.0))
      >>> updates, state = tx.update(
      ...     params, tx.init(params), params, max_logits={"attn": jnp.array([400.0, 20.0])})

    References:
      Kimi Team, Kimi K2: Open Agentic Intelligence, 2025, https://arxiv.org/abs/2507.20534
    """
    _checks.check_no_schedule("threshold", threshold)
    _checks.check_non_negative("threshold", threshold)
    if not isinstance(threshold, jax.Array) and threshold == 0:
        raise _checks.invalid("threshold", threshold, "give a number above 0")
    if targets is not None:
        _check_targets(targets)

    def init(params: optax.Params) -> QKClipState:
        if not is_placeholder(params):
            plan(targets, params)
        state = QKClipState(
            clipped_heads=jnp.zeros((), jnp.int32),
            nonfinite_heads=jnp.zeros((), jnp.int32),
            max_logit=jnp.array(-jnp.inf, jnp.float32),
        )
        return on_mesh_of(params, state)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        max_logits: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        if params is None:
            raise _checks.refused(
                "params is missing", "Pass params: the clipped weight is made from them"
            )
        params = params_beside(updates, params)
        work = plan(targets, params)
        maxima = _named_maxima(max_logits, work.maxima)
        gamma = {layer: _head_factors(logits, threshold) for layer, logits in maxima.items()}

        def clip(path: str, update: Array, param: Array) -> Array:
            scalings = work.scalings.get(path)
            return update if scalings is None else _clipped(update, param, scalings, gamma)

        return map_named(clip, updates, params), _counted(state, maxima, gamma)

    return optax.GradientTransformationExtraArgs(init, update)


def _head_factors(
    maxima: Float[Array, "*layers heads"], threshold: float
) -> Float[Array, "*layers heads"]:
    """Returns γ = τ/S of heads over the threshold and 1, exactly, of all others."""
    over = jnp.isfinite(maxima) & (maxima > threshold)
    return jnp.where(over, threshold / jnp.where(over, maxima, threshold), 1)


def _clipped(
    update: Float[Array, "..."],
    param: Float[Array, "..."],
    scalings: list[Scaling],
    gamma: Mapping[str, Float[Array, "..."]],
) -> Float[Array, "..."]:
    """Returns the update to the clipped weight; where no factor applies, the update as it is."""
    update, param = jnp.asarray(update), jnp.asarray(param)
    factor = jnp.ones(())
    for scaling in scalings:
        of_head = gamma[scaling.layer]
        if not scaling.whole:
            of_head = jnp.sqrt(of_head)
        factor *= _spread(of_head, param.shape, scaling.part, scaling.layer_axis)
    wide = wide_dtype(update.dtype, param.dtype)
    weight = param.astype(wide)
    clipped = factor.astype(wide) * (weight + update.astype(wide)) - weight
    return jnp.where(factor == 1, update, clipped.astype(update.dtype))


def _spread(
    of_head: Float[Array, "..."], shape: Shape, part: QKPart, layer_axis: int | None
) -> Float[Array, "..."]:
    """Lays factors out against a parameter: (heads,) or (layers, heads) along its axes.

    Beside the stretch of the part they are 1. Only factors are ever reshaped: the parameter may
    be large and sharded, and stays as it lies.
    """
    viewed = part.viewed(shape)
    axes = [part.head_axis % len(viewed)]
    if layer_axis is not None:
        axes.insert(0, part.viewed_axis(layer_axis, shape))
    if axes != sorted(axes):
        of_head = of_head.T
    factor = jnp.expand_dims(of_head, [axis for axis in range(len(viewed)) if axis not in axes])
    if part.stretch is not None:
        axis, start, stop = part.stretch
        axis %= len(viewed)
        width = [n if i != axis else stop - start for i, n in enumerate(factor.shape)]
        around = [(0, 0) if i != axis else (start, n - stop) for i, n in enumerate(viewed)]
        factor = jnp.pad(jnp.broadcast_to(factor, width), around, constant_values=1)
    if part.fused is not None:
        axis, inner = part.fused
        axis %= len(shape)
        before, after = factor.shape[:axis], factor.shape[axis + len(inner) :]
        factor = jnp.broadcast_to(factor, (*before, *inner, *after))
        factor = factor.reshape(*before, shape[axis], *after)
    return factor


def _named_maxima(max_logits: Any, expected: Mapping[str, Shape]) -> dict[str, Array]:
    """Checks the maxima against the layers that have targets."""
    if max_logits is None:
        raise _checks.refused(
            "max_logits is missing",
            "Pass max_logits=muon_jax.attention.collect_max_logits(intermediates), or "
            "max_attention_logits(query, key) by layer",
        )
    maxima = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in named_leaves(max_logits)}
    if unknown := [repr(layer) for layer in maxima if layer not in expected]:
        raise _checks.refused(
            f"max_logits names layers without a target: {_checks.listed(unknown)}",
            "Declare them in targets, or leave them out, as layers with query-key norms should be: "
            f"targets are {_checks.listed(map(repr, expected))}",
        )
    if missing := [repr(layer) for layer in expected if layer not in maxima]:
        raise _checks.refused(
            f"max_logits lacks {_checks.listed(missing)}",
            "Report the maxima of every layer that is a target, or declare fewer targets",
        )
    for layer, S in maxima.items():
        if S.shape != expected[layer]:
            raise _checks.refused(
                f"max_logits[{layer!r}] has shape {S.shape}, the layer's heads {expected[layer]}",
                "Give one maximum a head, (heads,) or (layers, heads); if heads are miscounted, "
                "declare by QKPart where they lie",
            )
    # The axes of a small array would collide with those of a weight.
    return {layer: replicated(S) for layer, S in maxima.items()}


def _check_targets(targets: Any) -> None:
    remedy = "give {layer path: QKTarget(...)}, or None"
    if not isinstance(targets, Mapping):
        raise _checks.invalid("targets", targets, remedy, TypeError)
    if not targets:
        raise _checks.invalid("targets", targets, remedy)
    for layer, target in targets.items():
        if not isinstance(target, QKTarget):
            raise _checks.invalid(f"targets[{layer!r}]", target, "give a QKTarget", TypeError)


def _counted(
    state: QKClipState, maxima: Mapping[str, Array], gamma: Mapping[str, Array]
) -> QKClipState:
    logits, factors = (
        jnp.concatenate([x.ravel() for x in by_layer.values()]) for by_layer in (maxima, gamma)
    )
    bounded = logits < jnp.inf  # neither NaN nor +inf; −inf is a head that saw nothing
    return QKClipState(
        clipped_heads=_added(state.clipped_heads, jnp.sum(factors < 1)),
        nonfinite_heads=_added(state.nonfinite_heads, jnp.sum(~bounded)),
        max_logit=jnp.maximum(state.max_logit, jnp.max(jnp.where(bounded, logits, -jnp.inf))),
    )


def _added(count: Int[Array, ""], more: Int[Array, ""]) -> Int[Array, ""]:
    """Adds without wrapping around."""
    return count + jnp.minimum(more.astype(jnp.int32), jnp.iinfo(jnp.int32).max - count)
