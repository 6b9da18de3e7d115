"""Optimizers for parameters that are not matrices; each can also be used alone."""

from typing import Any

import optax

from muon_jax import _checks
from muon_jax._types import Mask, ScalarOrSchedule
from muon_jax.mesh._state import on_mesh_of
from muon_jax.optimizers._widening import in_range
from muon_jax.transforms._door import public
from muon_jax.transforms._ema import check_storable
from muon_jax.transforms._momentum_rms import scale_by_momentum_rms
from muon_jax.transforms._per_tree import built_per_tree, check_mask, mask_for


@public("adamw")
def adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Trains with AdamW, with the settings that `muon` uses for parameters other than matrices.

    It is `optax.adamw` with other defaults: b2 = 0.95, which averages over fewer steps and suits
    short runs (Liu et al., 2025), Nesterov momentum, and no weight decay. It also trains float16
    parameters, with a float32 state, and the state keeps its dtypes for gradients of any dtype.

    Args:
      learning_rate: the learning rate, or a schedule of it by step.
      b1: decay of the average of gradients, in [0, 1).
      b2: decay of the average of their squares, in [0, 1).
      eps: added to the root of the second moment, at least 0.
      weight_decay: decoupled decay, at least 0, or a schedule of it.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function from the
        parameters to one; None is all.
      nesterov: whether to use Nesterov momentum, as in NAdam (Dozat, 2016).

    Returns:
      An optimizer, for use alone or as the `fallback` of `muon`.

    Raises:
      TypeError or ValueError: if an argument is out of its range.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.muon(1e-3, fallback=muon_jax.adamw(1e-3, b2=0.999))
    """
    _checks.check_non_negative("learning_rate", learning_rate)
    for name, value in (("b1", b1), ("b2", b2)):
        _checks.check_no_schedule(name, value)
        _checks.check_fraction(name, value)
    _checks.check_no_schedule("eps", eps)
    _checks.check_non_negative("eps", eps)
    _checks.check_non_negative("weight_decay", weight_decay)
    check_mask("weight_decay_mask", weight_decay_mask)
    _checks.check_bool("nesterov", nesterov)

    def build(tree: Any) -> optax.GradientTransformationExtraArgs:
        check_storable(tree)
        mask = mask_for("weight_decay_mask", tree, weight_decay_mask)
        tx = optax.adamw(
            learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask, nesterov=nesterov
        )
        return in_range(tx)

    return built_per_tree(build)


@public("momentum_rms")
def momentum_rms(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum: float = 0.9,
    max_norm: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains with `scale_by_momentum_rms`: the update of each leaf has the RMS `learning_rate`.

    Args:
      learning_rate: RMS of an update, or a schedule of it.
      weight_decay: decoupled decay, at least 0.
      momentum: decay of the average, in [0, 1).
      max_norm: bound on the Euclidean norm of a leaf's update before the learning rate; None is no
        bound.

    Returns:
      An optimizer, for use alone or as the `fallback` of `muon`.

    Raises:
      TypeError or ValueError: if an argument is out of its range.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.muon(1e-3, fallback=muon_jax.momentum_rms(1e-3))
    """
    _checks.check_non_negative("learning_rate", learning_rate)
    _checks.check_non_negative("weight_decay", weight_decay)
    tx = optax.chain(
        scale_by_momentum_rms(momentum=momentum, max_norm=max_norm),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return optax.GradientTransformationExtraArgs(
        lambda params: on_mesh_of(params, tx.init(params)), tx.update
    )
