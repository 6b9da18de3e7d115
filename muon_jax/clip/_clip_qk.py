"""QK-Clip: keeps the attention logits of every head in bounds by scaling its weights."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from muon_jax._checks import check_no_schedule, check_non_negative, invalid, listed, refused
from muon_jax._types import wide_dtype
from muon_jax.clip._plan import Scaling, plan
from muon_jax.clip._projection import Layer
from muon_jax.clip._targets import QKTarget
from muon_jax.mesh._specs import replicated
from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._door import public
from muon_jax.transforms._per_tree import once_per_structure
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
        as in `Rule`, such as `"blocks/*/attn"`. None takes every module with kernels for queries
        and keys, under the names and in the shapes that `matrix_axes` knows: those of Flax,
        Equinox, Haiku and torch, one kernel each or fused, alone or stacked by a scan. Modules
        that normalise queries or keys are left out.

    Returns:
      A transformation whose `update` takes `max_logits=`, a tree with the targets' paths and
      (heads,) maxima, or (layers, heads) where a scan stacks layers; for parameters that are one
      layer the array alone. Where a kernel has all heads on one axis, the maxima count the heads.
      NaN and +inf leave their heads unclipped and are counted in the state. With accumulated
      gradients, pass the largest of all micro-batches.

    Raises:
      ValueError: no parameter fits a target, a mask hides one that does, or a kernel has no
        certain view; or `max_logits` is missing, lacks a target, names a layer that is none, or has
        a wrong shape.

    Examples:
      >>> params = {"attn": {"query": {"kernel": jnp.ones((8, 2, 4))},
      ...                    "key": {"kernel": jnp.ones((8, 2, 4))}}}
      >>> tx = optax.chain(optax.sgd(0.1), clip_qk(100.0))
      >>> updates, state = tx.update(
      ...     params, tx.init(params), params, max_logits={"attn": jnp.array([400.0, 20.0])})

    References:
      Kimi Team, Kimi K2: Open Agentic Intelligence, 2025, https://arxiv.org/abs/2507.20534
    """
    check_no_schedule("threshold", threshold)
    check_non_negative("threshold", threshold)
    if not isinstance(threshold, jax.Array) and threshold == 0:
        raise invalid("threshold", threshold, "give a number above 0")
    if targets is not None:
        _check_targets(targets)

    planned = once_per_structure(functools.partial(plan, targets))

    def init(params: optax.Params) -> QKClipState:
        if not is_placeholder(params):
            planned(params)
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
            remedy = "Pass params: the clipped weight is made from them"
            raise refused("params is missing", remedy)
        params = params_beside(updates, params)
        layers, scalings = planned(params)
        maxima = _named_maxima(max_logits, layers)
        gamma = {layer: _head_factors(logits, threshold) for layer, logits in maxima.items()}

        def clip(path: str, update: Array, param: Array) -> Array:
            return _clipped(update, param, scalings[path], gamma) if path in scalings else update

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
    scalings: Sequence[Scaling],
    gamma: Mapping[str, Float[Array, "..."]],
) -> Float[Array, "..."]:
    """Returns the update to the clipped weight; where no factor applies, the update as it is."""
    update, param = jnp.asarray(update), jnp.asarray(param)
    factor = jnp.ones(())
    for layer, projection in scalings:
        of_head = jnp.sqrt(gamma[layer]) if projection.power == 0.5 else gamma[layer]
        spread = projection.spread(of_head)
        factor *= spread if spread.ndim == param.ndim else spread.reshape(param.shape)  # a bias
    wide = wide_dtype(update.dtype, param.dtype)
    weight = param.astype(wide)
    clipped = factor.astype(wide) * (weight + update.astype(wide)) - weight
    return jnp.where(factor == 1, update, clipped.astype(update.dtype))


def _named_maxima(max_logits: Any, layers: Mapping[str, Layer]) -> dict[str, Array]:
    """Checks the maxima against the layers that have targets."""
    if max_logits is None:
        remedy = "Pass max_logits=muon_jax.attention.collect_max_logits(intermediates), or "
        remedy += "max_attention_logits(query, key) by layer"
        raise refused("max_logits is missing", remedy)
    maxima = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in named_leaves(max_logits)}
    if unknown := [repr(layer) for layer in maxima if layer not in layers]:
        problem = f"max_logits names layers without a target: {listed(unknown)}"
        remedy = "Declare them in targets, or leave them out, as layers with query-key norms should"
        raise refused(problem, f"{remedy} be: targets are {listed(map(repr, layers))}")
    if missing := [repr(layer) for layer in layers if layer not in maxima]:
        remedy = "Report the maxima of every layer that is a target, or declare fewer targets"
        raise refused(f"max_logits lacks {listed(missing)}", remedy)
    for name, S in maxima.items():
        layer = layers[name]
        if not layer.fits(S.shape):
            problem = f"max_logits[{name!r}] has shape {S.shape}, which does not fit {layer}"
            remedy = f"Give one maximum a head, {(*layer.layers, layer.heads or 'heads')}; if "
            remedy += "heads are miscounted, say by QKPart(path, MatrixAxes(...)) where they lie"
            raise refused(problem, remedy)
    # The axes of a small array would collide with those of a weight.
    return {layer: replicated(S) for layer, S in maxima.items()}


def _check_targets(targets: Any) -> None:
    if not (isinstance(targets, Mapping) and targets):
        kind = ValueError if isinstance(targets, Mapping) else TypeError
        raise invalid("targets", targets, "give {layer path: QKTarget(...)}, or None", kind)
    for layer, target in targets.items():
        if not isinstance(target, QKTarget):
            raise invalid(f"targets[{layer!r}]", target, "give a QKTarget", TypeError)


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
