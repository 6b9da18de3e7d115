"""Scales of orthogonal updates: functions from the shape of a matrix to a factor.

The entries of an orthogonal matrix of shape (rows, cols) have an RMS of 1/√max(rows, cols), so the
shape determines the factor for a given size. Shapes are always (inputs, outputs).
"""

import math
from collections.abc import Callable
from types import MappingProxyType

import jax.numpy as jnp

from muon_jax import _checks
from muon_jax._types import Matrices, Scale, ShapeScale, wide_dtype
from muon_jax.polar._normalize import nonzero

ADAMW_UPDATE_RMS = 0.2
"""RMS of a typical AdamW update: Liu et al., "Muon is Scalable for LLM Training" (2025), §2.2."""

UPDATE_NORM = "update_norm"
"""The only named scale that depends on the update, not on its shape."""


def outputs(rows: int, cols: int) -> float:
    """Gives the update the RMS of a typical AdamW update, or less for more inputs than outputs.

    The factor is 0.2·√cols, which lets every output change by the same amount at most, whatever the
    number of inputs. `docs/explanation/comparison.md` compares its loss with `match_rms`.
    """
    del rows
    return ADAMW_UPDATE_RMS * math.sqrt(cols)


def match_rms(rows: int, cols: int) -> float:
    """Gives the update the RMS of a typical AdamW update: 0.2·√max(rows, cols).

    Learning rate and weight decay tuned for AdamW then carry over (Liu et al. 2025, eq. 4).
    """
    return ADAMW_UPDATE_RMS * math.sqrt(max(rows, cols))


def keller(rows: int, cols: int) -> float:
    """Enlarges updates of widening layers: √max(1, cols/rows) (Jordan et al., Muon, 2024)."""
    return math.sqrt(max(1.0, cols / rows))


def spectral(rows: int, cols: int) -> float:
    """Keeps the RMS → RMS operator norm at 1: √(cols/rows) (Yang et al. 2023; modula)."""
    return math.sqrt(cols / rows)


def unscaled(rows: int, cols: int) -> float:
    """Returns one, so that the update stays orthogonal."""
    del rows, cols
    return 1.0


@_checks.named("hidden_size")
def hidden_size(width: int) -> ShapeScale:
    """Gives every matrix the factor 0.2·√width, the baseline of Liu et al. 2025, §2.2.

    Args:
      width: the width of the model's residual stream, at least 1.

    Returns:
      A scale for `scale_by_muon`: a callable of (rows, cols) that ignores both.

    Raises:
      TypeError or ValueError: if `width` is not an integer of at least 1.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.scale_by_muon(scale=muon_jax.hidden_size(768))
    """
    _checks.check_positive_int("width", width)
    return lambda rows, cols: ADAMW_UPDATE_RMS * math.sqrt(width)


SHAPE_SCALES = MappingProxyType(
    {
        "outputs": outputs,
        "match_rms": match_rms,
        "keller": keller,
        "spectral": spectral,
        "none": unscaled,
    }
)


def check_scale(scale: Scale) -> None:
    """Raises unless this is a named scale or a callable of (rows, cols)."""
    if callable(scale):
        return
    choices = (*SHAPE_SCALES, UPDATE_NORM)
    if scale not in choices:
        names = ", ".join(map(repr, choices))
        remedy = (
            f"choose one of {names}, muon_jax.hidden_size(width), or a callable of (rows, cols)"
        )
        raise _checks.invalid("scale", scale, remedy)


def shape_scale(scale: Scale) -> ShapeScale | None:
    """Returns the function of (rows, cols) of a scale; None for `"update_norm"`."""
    return SHAPE_SCALES.get(scale) if isinstance(scale, str) else scale


def scaler(scale: Scale) -> Callable[[Matrices], Matrices]:
    """Returns the function that applies a scale to a batch of orthogonal matrices."""
    factor = shape_scale(scale)
    if factor is None:
        return _to_adamw_rms

    def rescale(matrices: Matrices) -> Matrices:
        if matrices.size == 0:
            return matrices  # cols / rows may divide by zero
        return matrices * jnp.asarray(factor(*matrices.shape[1:]), matrices.dtype)

    return rescale


def _to_adamw_rms(matrices: Matrices) -> Matrices:
    """Divides each matrix by its measured RMS, so that rank-deficient updates get full size."""
    wide = matrices.astype(wide_dtype(matrices.dtype))
    rms = jnp.sqrt(jnp.mean(jnp.square(wide), axis=(1, 2), keepdims=True))
    return (ADAMW_UPDATE_RMS * wide / nonzero(rms)).astype(matrices.dtype)
