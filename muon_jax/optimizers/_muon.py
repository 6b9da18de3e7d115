"""Muon for matrices and AdamW for the rest, as one optimizer."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import optax
from jax.core import Tracer

from muon_jax import _checks
from muon_jax._types import Mask, Orthogonalizer, ScalarOrSchedule, Scale
from muon_jax.clip._clip_qk import clip_qk
from muon_jax.clip._targets import QKTarget
from muon_jax.mesh._distribution import Distribute
from muon_jax.optimizers._fallback import adamw
from muon_jax.optimizers._heads import PROJECTIONS, heads_apart
from muon_jax.optimizers._other_names import OTHER_NAMES
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.routing._notices import notices
from muon_jax.routing._route import Ambiguous, Route, check_labels, check_rules, route
from muon_jax.routing._rule import FALLBACK, MUON, Rule
from muon_jax.routing._traced import AxesLike, TracedAxes
from muon_jax.transforms._door import public
from muon_jax.transforms._muon import scale_by_muon
from muon_jax.transforms._per_tree import (
    Report,
    built_per_tree,
    check_mask,
    mask_by_leaf,
    once_per_structure,
)
from muon_jax.transforms._record import RecordedLeaf
from muon_jax.transforms._scale import outputs
from muon_jax.transforms._scale_by_path import times
from muon_jax.transforms.precondition import PreconditionerLike
from muon_jax.views._matrix_axes import MatrixAxes

ADAMW_RATES = MappingProxyType(
    {"outputs": 2.5, "match_rms": 2.5, "update_norm": 2.5, "keller": 1.0, "spectral": 1.0}
)
"""AdamW's learning rate over that of the matrices, by the scale of their updates."""

TABLE_RATES = MappingProxyType({"embedding": 8.0, "lookup table": 8.0, "head": 2.0, "logits": 2.0})
"""Further factors for embeddings and output heads, by their rules by name and in `trace_axes`.

All were chosen by the comparison in `docs/explanation/comparison.md`.
"""


@public("muon", other_names=OTHER_NAMES)
def muon(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.25,
    weight_decay_mask: Mask | None = None,
    momentum: ScalarOrSchedule = 0.9,
    nesterov: bool = True,
    orthogonalizer: Orthogonalizer | None = None,
    scale: Scale = "outputs",
    momentum_dtype: Any = None,
    distribute: Distribute = "auto",
    precondition: PreconditionerLike = None,
    rules: Sequence[Rule] = (),
    axes: AxesLike = None,
    ambiguous: Ambiguous = "error",
    transforms: Mapping[str, optax.GradientTransformation] = MappingProxyType({}),
    fallback: optax.GradientTransformation | None = None,
    fallback_learning_rate: ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains matrices with Muon and everything else with AdamW, routed by path and shape.

    The step on a matrix W is W ← W − η (U + λ W), with U from `scale_by_muon`. Dense, attention and
    convolution kernels are matrices; embeddings, positional tables, output heads, vectors and
    scalars are not. `label_params` returns the label of each parameter; `rules` take precedence.

    The learning rate is η for matrices. For AdamW it is 2.5 η, 5 η for output heads and 20 η for
    embeddings. Only matrices decay. The comparison in `docs/explanation/comparison.md` chose these
    defaults. With `scale="keller"` or `"spectral"` a good η is larger, usually 0.02, and AdamW has
    η, 2 η and 8 η; with `"none"` or a function as scale it has η for all its parameters.

    With the default scale every head of a query, key or value kernel (inputs, heads, size) is a
    matrix of its own, and a preconditioner sees all heads together. Another scale keeps them
    together, and so does `rules=[Rule("*/{query,key,value}/kernel", MatrixAxes(0, (1, 2)))]`.

    To train parameters at another learning rate, chain `scale_by_path`, whose factors multiply
    these; `fallback_learning_rate` replaces them.

    Args:
      learning_rate: η, or a schedule of it by step.
      weight_decay: λ, at least 0, decoupled as in AdamW; or a schedule of it.
      weight_decay_mask: which parameters decay: a tree of booleans for the whole model, or a
        function from the parameters to one. AdamW decays its parameters with True by λ. None decays
        only the matrices.
      momentum: decay of the average of gradients, in [0, 1), or a schedule of it by step.
      nesterov: whether both optimizers use Nesterov momentum, as in NAdam (Dozat, 2016).
      orthogonalizer: from (batch, rows, cols) to the same shape; None is `newton_schulz()`.
      scale: size of Muon's updates, as for `scale_by_muon`.
      momentum_dtype: dtype in which Muon's average is stored; None is that of the parameters.
      distribute: which device orthogonalises which matrix on a mesh, as for `scale_by_muon`.
      precondition: divides the momentum before orthogonalisation: `"second_moment"` (Muon²),
        `"soap"` (SOAP-Muon), a `SecondMoment` or a `Soap`. None is plain Muon.
      rules: your rules, with precedence over all others.
      axes: views with precedence over the default rules: the result of `trace_axes`, a tree of
        `MatrixAxes` and None (for the fallback), or a function from the parameters to one.
      ambiguous: for an array that no rule matches and that has several candidate views as matrices:
        `"error"`, or `"fallback"`.
      transforms: optimizers for further labels in `rules`, such as `{"frozen":
        optax.set_to_zero()}`, as in `optax.multi_transform`.
      fallback: an optimizer for the other parameters, with its own learning rate and decay:
        `muon_jax.adamw(1e-3, b2=0.999)`, `optax.lion(1e-4)`, `muon_jax.momentum_rms(1e-3)`. None is
        `muon_jax.adamw`.
      fallback_learning_rate: learning rate or schedule of that AdamW for all its parameters; None
        is the factors above times `learning_rate`.

    Returns:
      An optimizer for any tree of parameters; apply its updates with `optax.apply_updates`.

    Raises:
      TypeError or ValueError: at once for an unusable argument; at `init` for a leaf that is not
        floating-point, has 8 bits, or has ambiguous views; at `update` for a state of other rules
        or widths.

    Warns:
      UserWarning: at `init`, if no parameter goes to Muon, or if the rules recognise no output head
        and a matrix may be one.

    Examples:
      >>> import jax, muon_jax
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8)), "bias": jax.numpy.zeros(8)}}
      >>> tx = muon_jax.muon(3e-4, weight_decay=0.1)
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    _checks.check_non_negative("learning_rate", learning_rate)
    _checks.check_non_negative("weight_decay", weight_decay)
    if fallback is not None:
        _checks.check_transformation("fallback", fallback)
        if fallback_learning_rate is not None:
            remedy = "leave it out and configure the transformation given as fallback instead"
            name = "fallback_learning_rate"
            raise _checks.invalid(name, fallback_learning_rate, remedy)
    elif fallback_learning_rate is not None:
        _checks.check_non_negative("fallback_learning_rate", fallback_learning_rate)
    check_mask("weight_decay_mask", weight_decay_mask)
    _check_transforms(transforms)
    rules = check_rules(rules, ambiguous)

    scaled_with = functools.partial(
        scale_by_muon,
        momentum=momentum,
        nesterov=nesterov,
        orthogonalizer=orthogonalizer,
        scale=scale,
        momentum_dtype=momentum_dtype,
        distribute=distribute,
        precondition=precondition,
    )
    scaled_with()  # raises for unusable arguments now, not at `init`
    given = fallback is not None or fallback_learning_rate is not None
    adamw_rate = None if given or callable(scale) else ADAMW_RATES.get(scale)
    rate = learning_rate if fallback_learning_rate is None else fallback_learning_rate

    @once_per_structure
    def read(tree: Any) -> tuple[Any, list[tuple[MatrixAxes | None, float]], list[bool]]:
        """Returns routes, views with gains, and decay for the whole tree.

        Optax would pass only a part of the tree.
        """
        routes = route(tree, rules=rules, axes=axes, ambiguous=ambiguous)
        check_labels(routes, {MUON, FALLBACK, *transforms})
        found = jax.tree.leaves(routes)
        known = set(PROJECTIONS)
        if isinstance(axes, TracedAxes):
            known |= {leaf.rule for leaf in axes.leaves}
        views = [
            heads_apart(each) if scale == "outputs" and each.rule in known else (each.axes, 1.0)
            for each in found
        ]
        if weight_decay_mask is None or not found:
            return routes, views, [each.label == MUON for each in found]
        return routes, views, mask_by_leaf("weight_decay_mask", tree, weight_decay_mask)

    def factor_of(found: Route) -> float:
        if found.label != FALLBACK or adamw_rate is None:
            return 1.0
        return adamw_rate * TABLE_RATES.get(found.rule, 1.0)

    def build(tree: Any) -> optax.GradientTransformationExtraArgs:
        routes, views, kept = read(tree)
        structure = jax.tree.structure(tree)
        mask, rest_decay = None, 0.0
        if weight_decay_mask is not None:
            decayed = structure.unflatten(kept)
            mask, rest_decay = (lambda _: decayed), weight_decay
        scaled = scaled_with(axes=structure.unflatten([view for view, _ in views]))
        matrices = optax.chain(
            _with_factors(scaled, [gain for view, gain in views if view]),
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
        )
        rest = fallback
        if rest is None:
            rest = adamw(rate, weight_decay=rest_decay, weight_decay_mask=mask, nesterov=nesterov)
        labels = jax.tree.map(lambda found: found.label, routes)
        joined = optax.multi_transform(
            {**transforms, MUON: matrices, FALLBACK: rest}, lambda _: labels
        )
        return _with_factors(joined, list(map(factor_of, jax.tree.leaves(routes))))

    def report(tree: Any) -> Report:
        routes, views, kept = read(tree)
        found = jax.tree.leaves(routes)
        decaying = {MUON, FALLBACK} if fallback is None else {MUON}
        leaves = [
            RecordedLeaf(
                each,
                orthogonalizer or newton_schulz(),
                scale if gain == 1 else lambda rows, cols, gain=gain: gain * outputs(rows, cols),
                shown_decay(weight_decay if keep else 0.0) if each.label in decaying else None,
                factor_of(each),
                view,
            )
            for each, (view, gain), keep in zip(found, views, kept, strict=True)
        ]
        return Report(leaves, [f"muon_jax.muon: {notice}" for notice in notices(found)])

    return built_per_tree(build, report)


@public("muon_clip", passes_to=muon)
def muon_clip(
    learning_rate: ScalarOrSchedule,
    *,
    threshold: float = 100.0,
    targets: Mapping[str, QKTarget] | None = None,
    **muon_arguments: Any,
) -> optax.GradientTransformationExtraArgs:
    """Trains like `muon`, and keeps the attention logits of every head near a threshold.

    This is MuonClip (Kimi Team, 2025): Muon with decay and updates of AdamW's RMS, then QK-Clip,
    which scales the query and key weights of the heads whose largest logit exceeds the threshold.

    Args:
      learning_rate: as for `muon`.
      threshold: the largest attention logit without clipping, above 0.
      targets: `QKTarget`s by the path of their layer, as for `clip_qk`; None infers them.
      muon_arguments: any other argument of `muon`.

    Returns:
      An optimizer whose `update` takes the largest logits of every head as `max_logits=`;
      `muon_jax.attention` measures them.

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
    return optax.chain(muon(learning_rate, **muon_arguments), clip_qk(threshold, targets))


def shown_decay(weight_decay: ScalarOrSchedule) -> float | str:
    """Returns a weight decay as `explain` shows it."""
    if callable(weight_decay):
        return "schedule"
    return "injected" if isinstance(weight_decay, Tracer) else float(weight_decay)


def _with_factors(
    tx: optax.GradientTransformation, factors: Sequence[float]
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of `tx` by a factor for each leaf."""
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        steps, state = tx.update(updates, state, params, **extra_args)
        leaves, treedef = jax.tree.flatten(steps)
        return treedef.unflatten(map(times, leaves, factors)), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _check_transforms(transforms: Any) -> None:
    """Raises unless these are optimizers by label, without the labels of `muon` itself."""
    if not isinstance(transforms, Mapping):
        remedy = 'give {label: transformation}, such as {"frozen": optax.set_to_zero()}'
        raise _checks.invalid("transforms", transforms, remedy, TypeError)
    taken = {MUON, FALLBACK} & set(transforms)
    if taken:
        remedy = f"give labels of your own, not {min(taken)!r}, which is taken"
        raise _checks.invalid("transforms", dict(transforms), remedy)
    for label, tx in transforms.items():
        _checks.check_transformation(f"transforms[{label!r}]", tx)
