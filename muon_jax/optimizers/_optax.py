"""optax.contrib.muon as a recipe: its routing, and Nesterov momentum with bias correction."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_jax import _checks
from muon_jax._types import Mask, Orthogonalizer, ScalarOrSchedule, Scale, ShapeScale
from muon_jax.mesh._distribution import Distribute
from muon_jax.optimizers._fallback import adamw
from muon_jax.optimizers._muon import shown_decay
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.routing._context import Leaf
from muon_jax.routing._route import route
from muon_jax.routing._rule import FALLBACK, MUON, Rule
from muon_jax.routing._traced import AxesLike
from muon_jax.transforms._door import public
from muon_jax.transforms._muon import MuonState, scale_by_muon
from muon_jax.transforms._orthogonalize import resolve_views, tree_solver
from muon_jax.transforms._per_tree import (
    Report,
    built_per_tree,
    check_mask,
    mask_by_leaf,
    once_per_structure,
)
from muon_jax.transforms._record import RecordedLeaf
from muon_jax.views._matrix_axes import MatrixAxes


def _as_matrix(leaf: Leaf) -> MatrixAxes | str:
    return MatrixAxes(0, 1) if len(leaf.shape) == 2 else FALLBACK


_EVERY_2D = Rule("*", _as_matrix, "optax.contrib.muon reads arrays by their rank", "rank")


@public("recipes.optax")
def optax_muon(
    learning_rate: ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    consistent_rms: float | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    orthogonalizer: Orthogonalizer | None = None,
    momentum_dtype: Any = None,
    distribute: Distribute = "auto",
    rules: Sequence[Rule] = (),
) -> optax.GradientTransformationExtraArgs:
    """Trains like `optax.contrib.muon`, with the arguments of that function.

    Every array of two axes is a matrix, embeddings included, and AdamW trains all others, unless a
    rule changes that. Nesterov momentum has bias correction, which matters in about the first
    1/(1 − β) steps.

    Args:
      learning_rate: of both optimizers, or a schedule of it.
      beta: decay of the average, in [0, 1).
      nesterov: whether both optimizers use Nesterov momentum.
      weight_decay: Muon's, decoupled.
      weight_decay_mask: which of Muon's leaves decay; None is all.
      consistent_rms: scale updates by this times √max(rows, cols); None is √max(1, cols/rows).
      adam_learning_rate: AdamW's; None is `learning_rate`.
      adam_weight_decay: AdamW's, decoupled.
      orthogonalizer: from (batch, rows, cols) to the same shape; None is five steps of Jordan's
        quintic in float32. The source's `"dion"` is `newton_schulz("you",
        normalization="frobenius")`.
      momentum_dtype: dtype in which Muon's average is stored; None is that of the parameters.
      distribute: which device orthogonalises which matrix on a mesh, as for
        `muon_jax.scale_by_muon`.
      rules: views, or the label `"adamw"`, by path, instead of the source's dimension numbers.

    Returns:
      An optimizer for any tree of parameters.

    Raises:
      TypeError or ValueError: for an argument out of its range, and for a view that does not fit.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.optax(0.02, weight_decay=0.1, consistent_rms=0.2)

    References:
      https://optax.readthedocs.io/en/latest/api/contrib.html
    """
    _checks.check_no_schedule("beta", beta)
    _checks.check_fraction("beta", beta)
    _checks.check_non_negative("learning_rate", learning_rate)
    _checks.check_non_negative("weight_decay", weight_decay)
    check_mask("weight_decay_mask", weight_decay_mask)
    if orthogonalizer is None:
        orthogonalizer = newton_schulz("keller", normalization="frobenius")
    scale: Scale = "keller"
    if consistent_rms is not None:
        _checks.check_non_negative("consistent_rms", consistent_rms)
        scale = _consistent(consistent_rms)

    if adam_learning_rate is None:
        adam_learning_rate = learning_rate
    _checks.check_non_negative("adam_learning_rate", adam_learning_rate)
    _checks.check_non_negative("adam_weight_decay", adam_weight_decay)
    adam = adamw(adam_learning_rate, b2=0.999, weight_decay=adam_weight_decay, nesterov=nesterov)

    scaled_with = functools.partial(
        _scale_by_optax_muon, beta, nesterov, orthogonalizer, scale, momentum_dtype, distribute
    )
    scaled_with(None)  # raises for unusable arguments now, not at `init`

    @once_per_structure
    def read(tree: Any) -> tuple[Any, list[bool]]:
        routes = route(tree, rules=(*rules, _EVERY_2D))
        found = jax.tree.leaves(routes)
        mask = True if weight_decay_mask is None or not found else weight_decay_mask
        return routes, mask_by_leaf("weight_decay_mask", tree, mask)

    def build(tree: Any) -> optax.GradientTransformationExtraArgs:
        routes, kept = read(tree)
        decayed = jax.tree.structure(tree).unflatten(kept)
        mask = None if weight_decay_mask is None else lambda _: decayed
        muon = optax.chain(
            scaled_with(jax.tree.map(lambda r: r.axes, routes)),
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
        )
        labels = jax.tree.map(lambda r: r.label, routes)
        return optax.multi_transform({MUON: muon, FALLBACK: adam}, lambda _: labels)

    def report(tree: Any) -> Report:
        routes, kept = read(tree)
        decays = {MUON: weight_decay, FALLBACK: adam_weight_decay}
        return Report(
            [
                RecordedLeaf(
                    each,
                    orthogonalizer,
                    scale,
                    shown_decay(decays[each.label] if keep or each.label == FALLBACK else 0.0),
                )
                for each, keep in zip(jax.tree.leaves(routes), kept, strict=True)
            ]
        )

    return built_per_tree(build, report)


def _consistent(rms: float) -> ShapeScale:
    return lambda rows, cols: rms * math.sqrt(max(rows, cols))


def _scale_by_optax_muon(
    beta: float,
    nesterov: bool,
    orthogonalizer: Orthogonalizer,
    scale: Scale,
    momentum_dtype: Any,
    distribute: Distribute,
    axes: AxesLike,
) -> optax.GradientTransformation:
    r"""Makes `scale_by_muon` with the Nesterov momentum of optax.

    After :math:`t` gradients that is :math:`\beta M / (1 - \beta^{t+1}) + (1 - \beta) G / (1 -
    \beta^t)`. The polar factor ignores a common factor, so only the ratio of the two divisors
    matters: the weight of the gradient is :math:`1 + \beta` times that of `scale_by_muon` at the
    first step, and the same after many. Without Nesterov there is no difference.
    """
    plain = scale_by_muon(
        momentum=beta,
        nesterov=False,
        orthogonalizer=orthogonalizer,
        scale=scale,
        axes=axes,
        momentum_dtype=momentum_dtype,
        distribute=distribute,
    )
    if not nesterov:
        return plain
    solve = tree_solver(orthogonalizer, scale, None, distribute)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        count = jnp.asarray(optax.safe_increment(state.count))
        average = optax.tree.update_moment(updates, state.mu, beta, 1)
        fresh = (1 - beta) * (1 - beta ** (count + 1)) / (1 - beta**count)
        mixed = jax.tree.map(lambda m, g: beta * m + fresh * g, average, updates)
        views = resolve_views(updates, axes)
        solved = solve(mixed, views, updates if params is None else params)
        average = optax.tree.cast_like(average, state.mu)
        return optax.tree.cast_like(solved, updates), MuonState(count, average)

    return optax.GradientTransformation(plain.init, update)
