"""Published Muons by name, each with the learning rates, decays and number format of its source.

Use them for results that are comparable with the sources. Tests compare every recipe with its
source over at least twenty steps; `docs/reference/parity.md` has the differences. The rules of this
library find the matrices, because most sources leave that to the user; only `optax` has its own
rule.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

# Not `import optax`, because one of the recipes is called `optax`.
from optax import GradientTransformation, GradientTransformationExtraArgs

from muon_jax import _checks
from muon_jax._types import ScalarOrSchedule, Scale
from muon_jax.clip._targets import QKTarget
from muon_jax.optimizers._fallback import adamw, momentum_rms
from muon_jax.optimizers._muon import muon, muon_clip
from muon_jax.optimizers._optax import optax_muon as optax
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.polar._svd import polar_by_svd
from muon_jax.transforms._door import public

__all__ = ["keller", "kimi_k2", "moonlight", "optax", "procrustes", "torch"]

_ADJUSTMENTS: Mapping[str, Scale] = MappingProxyType(
    {"original": "keller", "match_rms_adamw": "match_rms"}
)
"""Scales by their names in `torch.optim.Muon`."""


@public("recipes.keller", passes_to=muon)
def keller(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule = 3e-4,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    dtype: Any = "bfloat16",
    **muon_arguments: Any,
) -> GradientTransformationExtraArgs:
    """Trains like `MuonWithAuxAdam` of KellerJordan/Muon.

    Momentum 0.95 with Nesterov, five steps of Jordan's quintic, updates scaled by
    √max(1, outputs/inputs); Adam with b1 = 0.9, b2 = 0.95, eps = 1e-10 for the rest.

    Args:
      learning_rate: Muon's, or a schedule of it.
      weight_decay: Muon's, decoupled.
      adam_learning_rate: Adam's; the source's example uses 0.04 to 0.6, depending on the parameter.
      adam_weight_decay: Adam's, decoupled.
      dtype: format of the operands of products; `"float32"` spares the source's rounding.
      muon_arguments: any other argument of `muon_jax.muon`, such as `rules`.

    Returns:
      An optimizer for any tree of parameters.

    Raises:
      TypeError or ValueError: as `muon_jax.muon` does.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.keller(0.05, adam_learning_rate=0.04)

    References:
      https://github.com/KellerJordan/Muon
    """
    _check_adam(adam_learning_rate, adam_weight_decay)
    adam = adamw(adam_learning_rate, eps=1e-10, weight_decay=adam_weight_decay, nesterov=False)
    source = _source(dtype, "keller", adam)
    return muon(learning_rate, weight_decay=weight_decay, **(source | muon_arguments))


@public("recipes.moonlight", passes_to=muon)
def moonlight(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    weight_decay: ScalarOrSchedule = 0.1,
    dtype: Any = "bfloat16",
    **muon_arguments: Any,
) -> GradientTransformationExtraArgs:
    """Trains like the Muon of MoonshotAI/Moonlight.

    Momentum 0.95 with Nesterov, five steps of Jordan's quintic, updates scaled by
    0.2·√max(outputs, inputs); AdamW with b1 = 0.9, b2 = 0.95 and the same learning rate and decay
    for the rest. The source accumulates heavy ball, which has the same polar factor.

    Args:
      learning_rate: of both optimizers, or a schedule of it.
      weight_decay: of both, decoupled.
      dtype: format of the operands of products; `"float32"` spares the source's rounding.
      muon_arguments: any other argument of `muon_jax.muon`, such as `rules`.

    Returns:
      An optimizer for any tree of parameters.

    Raises:
      TypeError or ValueError: as `muon_jax.muon` does.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.moonlight(2e-4)

    References:
      https://github.com/MoonshotAI/Moonlight, examples/toy_train.py
    """
    adam = adamw(learning_rate, weight_decay=weight_decay, nesterov=False)
    source = _source(dtype, "match_rms", adam)
    return muon(learning_rate, weight_decay=weight_decay, **(source | muon_arguments))


@public("recipes.torch", passes_to=muon)
def torch(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    weight_decay: ScalarOrSchedule = 0.1,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
    adam_learning_rate: ScalarOrSchedule = 1e-3,
    adam_weight_decay: ScalarOrSchedule = 0.01,
    dtype: Any = "bfloat16",
    **muon_arguments: Any,
) -> GradientTransformationExtraArgs:
    """Trains like `torch.optim.Muon`, with `torch.optim.AdamW` for the rest.

    Momentum 0.95 with Nesterov and five steps of Jordan's quintic. AdamW has PyTorch's defaults,
    such as b2 = 0.999.

    Args:
      learning_rate: Muon's, or a schedule of it.
      weight_decay: Muon's, decoupled.
      adjust_lr_fn: `"original"` scales updates by √max(1, outputs/inputs), `"match_rms_adamw"` by
        0.2·√max(outputs, inputs).
      adam_learning_rate: AdamW's.
      adam_weight_decay: AdamW's.
      dtype: format of the operands of products; `"float32"` spares the source's rounding.
      muon_arguments: any other argument of `muon_jax.muon`: `momentum`, `nesterov`, `rules`, ….

    Returns:
      An optimizer for any tree of parameters. The source supports only matrices; `muon_jax.explain`
      shows the views of fused, stacked and convolution kernels.

    Raises:
      TypeError or ValueError: for another `adjust_lr_fn`, and as `muon_jax.muon` does.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.torch(1e-3, adjust_lr_fn="match_rms_adamw")

    References:
      https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html
    """
    _checks.check_choice("adjust_lr_fn", adjust_lr_fn, _ADJUSTMENTS)
    _check_adam(adam_learning_rate, adam_weight_decay)
    adam = adamw(adam_learning_rate, b2=0.999, weight_decay=adam_weight_decay, nesterov=False)
    source = _source(dtype, _ADJUSTMENTS[adjust_lr_fn], adam)
    return muon(learning_rate, weight_decay=weight_decay, **(source | muon_arguments))


@public("recipes.kimi_k2", passes_to=muon_clip)
def kimi_k2(
    learning_rate: ScalarOrSchedule = 2e-4,
    *,
    threshold: float = 100.0,
    targets: Mapping[str, QKTarget] | None = None,
    weight_decay: ScalarOrSchedule = 0.1,
    dtype: Any = "bfloat16",
    **muon_arguments: Any,
) -> GradientTransformationExtraArgs:
    """Trains with MuonClip, as in the report of Kimi K2.

    Its Algorithm 1: momentum 0.95 without Nesterov, updates scaled by 0.2·√max(outputs, inputs),
    decay, and then QK-Clip. AdamW with the same learning rate and decay trains the rest.

    Args:
      learning_rate: of both optimizers, or a schedule of it.
      threshold: τ of `muon_jax.clip_qk`.
      targets: `QKTarget`s by layer, as for `muon_jax.clip_qk`.
      weight_decay: of both, decoupled.
      dtype: format of the operands of products; `"float32"` spares the source's rounding.
      muon_arguments: any other argument of `muon_jax.muon`, such as `rules`.

    Returns:
      An optimizer whose `update` takes `max_logits=`, as that of `muon_jax.muon_clip`.

    Raises:
      TypeError or ValueError: as `muon_jax.muon_clip` does.

    Examples:
      >>> from muon_jax import recipes
      >>> tx = recipes.kimi_k2(2e-4, threshold=100.0)

    References:
      Kimi Team, Kimi K2: Open Agentic Intelligence, 2025, https://arxiv.org/abs/2507.20534
    """
    adam = adamw(learning_rate, weight_decay=weight_decay, nesterov=False)
    source = {"nesterov": False, **_source(dtype, "match_rms", adam)}
    return muon_clip(
        learning_rate,
        threshold=threshold,
        targets=targets,
        weight_decay=weight_decay,
        **(source | muon_arguments),
    )


@public("recipes.procrustes", passes_to=muon)
def procrustes(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    weight_decay: ScalarOrSchedule = 0.01,
    momentum: float = 0.9,
    **muon_arguments: Any,
) -> GradientTransformationExtraArgs:
    """Trains matrices with the exact polar factor, and the rest with momentum over its RMS.

    The polar factor solves the orthogonal Procrustes problem: it is the orthogonal matrix nearest
    to the momentum. There is no Nesterov momentum and no scale by shape.

    Args:
      learning_rate: the spectral norm of the update of a matrix, and the RMS of other updates.
      weight_decay: decoupled, of all parameters.
      momentum: decay of the average, in [0, 1).
      muon_arguments: any other argument of `muon_jax.muon`; `orthogonalizer=inverse_sqrt()` is the
        coupled iteration in place of the SVD.

    Returns:
      An optimizer for any tree of parameters, with one moment for each.

    Raises:
      TypeError or ValueError: as `muon_jax.muon` does.

    Examples:
      >>> import muon_jax
      >>> from muon_jax import recipes
      >>> tx = recipes.procrustes(1e-3, orthogonalizer=muon_jax.inverse_sqrt())
    """
    rest = momentum_rms(learning_rate, weight_decay=weight_decay, momentum=momentum)
    source = {
        "nesterov": False,
        "orthogonalizer": polar_by_svd(),
        "scale": "none",
        "fallback": rest,
    }
    return muon(
        learning_rate, weight_decay=weight_decay, momentum=momentum, **(source | muon_arguments)
    )


def _check_adam(learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule) -> None:
    """Checks arguments that recipes pass to `adamw` under other names."""
    _checks.check_non_negative("adam_learning_rate", learning_rate)
    _checks.check_non_negative("adam_weight_decay", weight_decay)


def _source(dtype: Any, scale: Scale, fallback: GradientTransformation) -> dict[str, Any]:
    """Returns what these sources share: momentum 0.95 and five steps of Jordan's quintic."""
    jordan = newton_schulz("keller", dtype=dtype, normalization="frobenius")
    return {"momentum": 0.95, "orthogonalizer": jordan, "scale": scale, "fallback": fallback}
