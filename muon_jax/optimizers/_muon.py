"""Whole optimizers: Muon for the matrices, another optimizer for the rest."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import optax
from jaxtyping import Array

from muon_jax import _checks
from muon_jax._types import Mask, Orthogonalizer, ScalarOrSchedule, ShapeScale
from muon_jax.clip._clip_qk import clip_qk
from muon_jax.clip._targets import QKTarget
from muon_jax.mesh._distribution import Distribute
from muon_jax.mesh._state import on_mesh_of
from muon_jax.routing._notices import notices
from muon_jax.routing._route import Ambiguous, Route, check_labels, check_rules, route
from muon_jax.routing._rule import FALLBACK, MUON, Rule
from muon_jax.routing._traced import AxesLike
from muon_jax.transforms import _skip_nonfinite
from muon_jax.transforms._momentum_rms import momentum_rms_transformation
from muon_jax.transforms._muon import muon_transformation
from muon_jax.transforms._per_tree import built_per_tree, mask_for
from muon_jax.transforms._scale_by_path import check_multipliers, multipliers_of
from muon_jax.transforms._widening import in_range

Function = TypeVar("Function", bound=Callable[..., Any])

_ADAMW_B2 = 0.95  # Liu et al. 2025; 0.999 averages over more steps than short runs have


TABLE_RATE = 10.0
"""Factor on the learning rate of embeddings and output heads, chosen by the comparison in
`docs/explanation/comparison.md`."""

_TABLES = ("embedding", "head")  # names of the default rules that find them
_TRACED_TABLES = ("lookup table", "logits")  # what `trace_axes` calls them


def muon(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.1,
    weight_decay_mask: Mask | None = None,
    learning_rate_multipliers: Mapping[str, float] = MappingProxyType({}),
    momentum: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    orthogonalizer: Orthogonalizer | None = None,
    scale: str | ShapeScale = "match_rms",
    momentum_dtype: Any = None,
    chunk_bytes: int | None = None,
    distribute: Distribute = "auto",
    rules: Sequence[Rule] = (),
    axes: AxesLike = None,
    ambiguous: Ambiguous = "error",
    others: Mapping[str, optax.GradientTransformation] = MappingProxyType({}),
    skip_nonfinite: bool = False,
    fallback: optax.GradientTransformation | None = None,
    fallback_learning_rate: ScalarOrSchedule | None = None,
    fallback_weight_decay: ScalarOrSchedule | None = None,
    fallback_weight_decay_mask: Mask | None = None,
    fallback_nesterov: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains matrices with Muon and everything else with AdamW, routed by path and shape.

    The step on a matrix W is W ← W − η (U + λ W), with U from `scale_by_muon`. Dense, attention and
    convolution kernels are matrices; embeddings, positional tables, output heads, vectors and
    scalars are not. `label_params` says which is which, and `rules` overrule it.

    One learning rate serves the whole model: matrices, vectors and scalars have η, embeddings
    (position tables among them) and output heads 10 η. Only matrices decay. Both choices come from
    the comparison in `docs/explanation/comparison.md`. They hold for the default scale, whose
    updates have the RMS of AdamW's. With `scale="keller"` or `"spectral"` a good η is larger,
    customarily 0.02, and everything that AdamW takes has η: give `fallback_learning_rate`.

    Args:
      learning_rate: η, or a schedule of it by step.
      weight_decay: λ, at least 0, decoupled as in AdamW; or a schedule of it.
      weight_decay_mask: which of Muon's leaves decay: a tree of booleans, or a function from the
        parameters to one; None is all.
      learning_rate_multipliers: factors of at least 0 on the whole step, decay included, of the
        parameters whose path fits a pattern, as `Rule` describes it, whichever optimizer takes
        them: `{"*/embed/*": 0.1}`. The first pattern that fits wins, and stands for the 10 of an
        embedding or a head; what fits none has 1.
      momentum: as for `scale_by_muon`, like the next six.
      nesterov: look one step ahead, in both optimizers.
      orthogonalizer: from (batch, rows, cols) to the same shape; None is `newton_schulz()`.
      scale: size of Muon's updates.
      momentum_dtype: dtype of Muon's state; None is that of the parameters.
      chunk_bytes: bound on the size of the matrices orthogonalised at a time.
      distribute: who works on which matrix on a mesh.
      rules: rules of your own, tried first.
      axes: views that come before the default rules: what `trace_axes` returns, a tree of
        `MatrixAxes` and None (which leaves a parameter to the fallback), or a function from the
        parameters to one. None is none.
      ambiguous: what becomes of an array that no rule knows and that has several candidate views as
        matrices: `"error"`, or `"fallback"`.
      others: whole optimizers for labels of your own that `rules` give, such as
        `{"frozen": optax.set_to_zero()}`.
      skip_nonfinite: leave weights, momenta and counts as they are on a step whose gradients hold a
        NaN or an infinity; `muon_jax.skip_nonfinite` around the whole optimizer.
      fallback: a whole optimizer for the other leaves, learning rate included, such as
        `optax.lion(1e-4)` or `momentum_rms(1e-3)`; the four arguments below are then refused.
        None is AdamW with b1 = 0.9, b2 = 0.95 and Nesterov's momentum.
      fallback_learning_rate: AdamW's learning rate or schedule, of all its leaves; None is
        `learning_rate`, and with the default scale 10 times that for embeddings and output heads.
      fallback_weight_decay: AdamW's decay; None is no decay.
      fallback_weight_decay_mask: which of AdamW's leaves decay; None is all.
      fallback_nesterov: whether AdamW's first moment looks one step ahead, as in NAdam (Dozat,
        2016); None is `nesterov`.

    Returns:
      An optimizer for any tree of parameters: it subtracts, so apply it with `optax.apply_updates`.

    Raises:
      TypeError or ValueError: at once for an unusable argument; at `init` for a leaf that is not
        floating-point or that could be read as a matrix in two ways, and for a multiplier whose
        pattern fits no path; at `update` for a state that other rules or widths made.

    Warns:
      UserWarning: at `init`, if no parameter goes to Muon, or if the rules recognise no output head
        and a matrix may be one.

    Examples:
      >>> import jax, muon_jax
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8)), "bias": jax.numpy.zeros(8)}}
      >>> tx = muon_jax.muon(3e-4, weight_decay=0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    _checks.check_non_negative("muon", "learning_rate", learning_rate)
    _checks.check_non_negative("muon", "weight_decay", weight_decay)
    check_multipliers("muon", learning_rate_multipliers)
    _checks.check_bool("muon", "skip_nonfinite", skip_nonfinite)
    if fallback_nesterov is not None:
        _checks.check_bool("muon", "fallback_nesterov", fallback_nesterov)
    adamw = functools.partial(
        _fallback_adamw,
        learning_rate if fallback_learning_rate is None else fallback_learning_rate,
        0.0 if fallback_weight_decay is None else fallback_weight_decay,
        nesterov if fallback_nesterov is None else fallback_nesterov,
    )
    if fallback is None:
        adamw(None)  # refuses unusable arguments now, before there is a tree to mask
    else:
        _checks.check_transformation("muon", "fallback", fallback)
        _refuse_beside_fallback(
            fallback_learning_rate=fallback_learning_rate,
            fallback_weight_decay=fallback_weight_decay,
            fallback_weight_decay_mask=fallback_weight_decay_mask,
            fallback_nesterov=fallback_nesterov,
        )

    if not isinstance(others, Mapping):
        remedy = 'give {label: transformation}, such as {"frozen": optax.set_to_zero()}'
        raise _checks.invalid("muon", "others", others, remedy, TypeError)
    taken = {MUON, FALLBACK} & set(others)
    if taken:
        remedy = f"give labels of your own, not {min(taken)!r}, which is taken"
        raise _checks.invalid("muon", "others", dict(others), remedy)

    for label, other in others.items():
        _checks.check_transformation("muon", f"others[{label!r}]", other)
    rules = check_rules(rules, ambiguous, "muon")

    scaled_with = functools.partial(
        muon_transformation,
        "muon",
        momentum=momentum,
        nesterov=nesterov,
        orthogonalizer=orthogonalizer,
        scale=scale,
        momentum_dtype=momentum_dtype,
        chunk_bytes=chunk_bytes,
        distribute=distribute,
    )
    scaled_with()  # refuses unusable arguments now, before there is a tree to route

    def routed(tree: Any) -> optax.GradientTransformationExtraArgs:
        """Builds the chain with labels and views read off the whole tree, not a masked part."""
        routes = route(tree, rules=rules, axes=axes, ambiguous=ambiguous, call="muon")
        check_labels(routes, {MUON, FALLBACK, *others}, call="muon")
        matrices = optax.chain(
            scaled_with(axes=jax.tree.map(lambda found: found.axes, routes)),
            optax.add_decayed_weights(
                weight_decay, mask_for("muon", "weight_decay_mask", tree, weight_decay_mask)
            ),
            optax.scale_by_learning_rate(learning_rate),
        )
        labels = jax.tree.map(lambda found: found.label, routes)
        rest = fallback
        if rest is None:
            name = "fallback_weight_decay_mask"
            rest = adamw(mask_for("muon", name, tree, fallback_weight_decay_mask))
        one_rate = fallback is not None or fallback_learning_rate is not None
        factors = multipliers_of(
            tree,
            learning_rate_multipliers,
            call="muon",
            unmatched=None
            if one_rate
            else jax.tree.map(lambda found: rate_by_default(found, scale), routes),
        )
        joined = optax.multi_transform({**others, MUON: matrices, FALLBACK: rest}, lambda _: labels)
        return _with_factors(joined, factors)

    plain = built_per_tree("muon", routed)

    def init(params: optax.Params) -> optax.OptState:
        state = plain.init(params)
        routes = route(params, rules=rules, axes=axes, ambiguous=ambiguous, call="muon")
        for notice in notices(jax.tree.leaves(routes)):
            warnings.warn(f"muon_jax.muon: {notice}", stacklevel=2)
        return state

    tx = optax.GradientTransformationExtraArgs(init, plain.update)
    return _skip_nonfinite.skip_nonfinite(tx) if skip_nonfinite else tx


def _with_arguments_of(other: Callable[..., Any]) -> Callable[[Function], Function]:
    """Names in a signature what ** passes on, where `optax.inject_hyperparams` looks for it."""

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        *named, _ = own.parameters.values()
        passed = [
            parameter
            for name, parameter in inspect.signature(other).parameters.items()
            if name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=[*named, *passed])
        return function

    return decorate


@_with_arguments_of(muon)
def muon_clip(
    learning_rate: ScalarOrSchedule,
    *,
    threshold: float = 100.0,
    targets: Mapping[str, QKTarget] | None = None,
    skip_nonfinite: bool = False,
    **muon_arguments: Any,
) -> optax.GradientTransformationExtraArgs:
    """Trains as `muon` does and holds the attention logits of every head near a threshold.

    This is MuonClip (Kimi Team, 2025): Muon with decay and updates of AdamW's RMS, then QK-Clip,
    which scales the query and key weights of the heads whose largest logit exceeds the threshold.

    Args:
      learning_rate: as for `muon`.
      threshold: as for `clip_qk`.
      targets: as for `clip_qk`: what makes queries and keys; None finds them in Flax attention.
      skip_nonfinite: as for `muon`; the clip pauses as well.
      muon_arguments: any other argument of `muon`, with its default.

    Returns:
      An optimizer for any tree of parameters whose `update` takes the largest logits of every head
      as `max_logits=`; `muon_jax.attention` measures them.

    Raises:
      TypeError or ValueError: as `muon` and `clip_qk` do.

    Examples:
      >>> import jax, muon_jax
      >>> kernel = {"kernel": jax.numpy.ones((8, 2, 4))}
      >>> params = {"attn": {"query": kernel, "key": kernel}}
      >>> tx = muon_jax.muon_clip(3e-4)
      >>> maxima = {"attn": jax.numpy.array([400.0, 20.0])}
      >>> updates, state = tx.update(params, tx.init(params), params, max_logits=maxima)
    """
    _checks.check_bool("muon_clip", "skip_nonfinite", skip_nonfinite)
    tx = optax.chain(muon(learning_rate, **muon_arguments), clip_qk(threshold, targets))
    return _skip_nonfinite.skip_nonfinite(tx) if skip_nonfinite else tx


def momentum_rms(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum: float = 0.9,
    max_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Steps along each leaf's momentum with a given RMS: `scale_by_momentum_rms`, decay and rate.

    Args:
      learning_rate: RMS of a step, or a schedule of it.
      weight_decay: decoupled decay, at least 0.
      momentum: decay of the average, in [0, 1).
      max_norm: bound on the Euclidean norm of a leaf's step before the learning rate; None is none.

    Returns:
      An optimizer, usable alone or as the `fallback` of `muon`.

    Raises:
      TypeError or ValueError: if an argument is out of its range.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.muon(1e-3, fallback=muon_jax.momentum_rms(1e-3))
    """
    _checks.check_non_negative("momentum_rms", "learning_rate", learning_rate)
    _checks.check_non_negative("momentum_rms", "weight_decay", weight_decay)
    tx = optax.chain(
        momentum_rms_transformation("momentum_rms", momentum=momentum, max_norm=max_norm),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.GradientTransformationExtraArgs(
        lambda params: on_mesh_of(params, tx.init(params)), tx.update
    )


def rate_by_default(found: Route, scale: str | ShapeScale) -> float:
    """Returns the factor on the learning rate of a leaf that no multiplier fits."""
    tables = _TABLES if found.by_default else _TRACED_TABLES
    table = found.label == FALLBACK and found.rule in tables
    return TABLE_RATE if table and scale == "match_rms" else 1.0


def _with_factors(
    tx: optax.GradientTransformationExtraArgs, factors: Any
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the steps of `tx` by a factor for each leaf; the state stays that of `tx`."""

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        steps, state = tx.update(updates, state, params, **extra_args)
        return jax.tree.map(_times, steps, factors), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _fallback_adamw(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    nesterov: bool,
    mask: Mask | None,
) -> optax.GradientTransformationExtraArgs:
    _checks.check_non_negative("muon", "fallback_learning_rate", learning_rate)
    _checks.check_non_negative("muon", "fallback_weight_decay", weight_decay)
    adamw = functools.partial(optax.adamw, b2=_ADAMW_B2, nesterov=nesterov)
    return in_range(adamw(learning_rate, weight_decay=weight_decay, mask=mask))


def _times(step: Array, factor: float) -> Array:
    return step if factor == 1 else step * factor


def _refuse_beside_fallback(**arguments: Any) -> None:
    """Refuses arguments that configure the default fallback when another one is given."""
    for name, value in arguments.items():
        if value is not None:
            remedy = "leave it out and configure the transformation given as fallback instead"
            raise _checks.invalid("muon", name, value, remedy)
