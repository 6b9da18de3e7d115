"""Measures of singular values and of the sizes of updates.

All measures are computed in float32 or wider, for each matrix separately: a NaN affects only its
own matrix, and an empty matrix counts as zero. An SVD costs many times a step of Muon, so measure
rarely.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax._types import wide_dtype
from muon_jax.polar._normalize import nonzero, to_unit_range

AnyMatrices = Float[Array, "*batch rows cols"]
Values = Float[Array, "*batch short"]
Measure = Float[Array, "*batch"]

_MATRIX = (-2, -1)


@_checks.named("diagnostics.singular_value_entropy")
def singular_value_entropy(matrices: AnyMatrices) -> Measure:
    r"""Measures how evenly the energy of a matrix is spread over its directions.

    With the n = min(rows, cols) singular values :math:`\sigma_i`,

    .. math::
      H = -\frac{1}{\log n} \sum_i p_i \log p_i, \qquad p_i = \frac{\sigma_i^2}{\sum_j \sigma_j^2}.

    Liu et al. find it higher in weights that Muon trained than in those of AdamW. It depends
    neither on the size of the matrix's entries nor on rotations of either side.

    Args:
      matrices: arrays whose last two axes are matrices.

    Returns:
      One number in [0, 1] for each matrix, in float32 or wider: 1 for an orthogonal matrix and for
      a vector, 0 for a matrix of rank one, and for zero.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if the array has fewer than two axes.

    Examples:
      >>> float(singular_value_entropy(jnp.eye(3)))
      1.0

    References:
      Liu et al., `Muon is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_, 2025,
      section 3.4, after Alter et al., 2000
    """
    return entropy_of(scaled_singular_values(_checked(matrices)))


@_checks.named("diagnostics.stable_rank")
def stable_rank(matrices: AnyMatrices) -> Measure:
    r"""Returns the stable rank :math:`\|X\|_F^2 / \|X\|_2^2`.

    Unlike the rank it depends continuously on small singular values. Like the entropy it does not
    depend on scale or rotations.

    Args:
      matrices: arrays whose last two axes are matrices.

    Returns:
      One number in [1, min(rows, cols)] for each matrix, in float32 or wider: the maximum for an
      orthogonal matrix, 1 for a matrix of rank one, and 0 for zero.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if the array has fewer than two axes.

    Examples:
      >>> float(stable_rank(jnp.eye(3)))
      3.0
    """
    return stable_rank_of(scaled_singular_values(_checked(matrices)))


@_checks.named("diagnostics.orthogonality_residual")
def orthogonality_residual(matrices: AnyMatrices, *, up_to_scale: bool = False) -> Measure:
    r"""Measures how far matrices are from orthogonal: :math:`\|X X^\top - I\|_F / \sqrt m`.

    The Gram matrix is that of the short side, of length m, so the residual is the root mean square
    of :math:`\sigma_i^2 - 1`; for a singular value near one that is twice its distance from one.

    Args:
      matrices: arrays whose last two axes are matrices.
      up_to_scale: whether to first divide each matrix by the root mean square of its singular
        values, for updates that include a scale and a learning rate.

    Returns:
      One number of at least 0 for each matrix, in float32 or wider: 0 for an orthogonal matrix and
      1 for zero. Up to scale it is at most √(m − 1), for a matrix of rank one.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if the array has fewer than two axes.

    Examples:
      >>> float(orthogonality_residual(2 * jnp.eye(3)))
      3.0
      >>> float(orthogonality_residual(2 * jnp.eye(3), up_to_scale=True))
      0.0
    """
    matrices = _checked(matrices)
    if up_to_scale:
        return residual_up_to_scale_of(scaled_singular_values(matrices))
    return _distance_from_one(jnp.square(_singular_values(matrices)))


@_checks.named("diagnostics.update_to_weight_rms")
def update_to_weight_rms(updates: AnyMatrices, weights: AnyMatrices) -> Measure:
    """Divides the root mean square of an update by that of its weight.

    A good learning rate keeps this relative step about 10⁻³ for most of a run. Under weight decay λ
    at learning rate η it converges to the order of √(2ηλ).

    Args:
      updates: the updates for `optax.apply_updates`, including the learning rate.
      weights: the weights before the update, of the same shape.

    Returns:
      One number of at least 0 for each matrix, in float32 or wider: 0 if the update is zero,
      infinity if only the weight is.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if the shapes differ, or have fewer than two axes.

    Examples:
      >>> float(update_to_weight_rms(jnp.full((2, 2), 0.5), jnp.ones((2, 2))))
      0.5
    """
    updates, weights = _checked(updates), _checked(weights)
    if updates.shape != weights.shape:
        raise _checks.refused(
            f"the updates have shape {updates.shape} and the weights {weights.shape}",
            "Give the update of these weights",
        )
    step, size = _root_mean_square(updates), _root_mean_square(weights)
    return step / jnp.where(step == 0, 1, size)


def scaled_singular_values(matrices: AnyMatrices) -> Values:
    """Returns the singular values times a power of two, so that their squares do not overflow."""
    return _singular_values(to_unit_range(matrices) if matrices.size else matrices)


def _singular_values(matrices: AnyMatrices) -> Values:
    """Returns the singular values; an empty matrix has one, which is zero."""
    matrices = _widened(matrices)
    if matrices.size == 0:
        return jnp.zeros((*matrices.shape[:-2], 1), matrices.dtype)
    return jnp.linalg.svdvals(matrices)


def entropy_of(values: Values) -> Measure:
    share = _shares(values)
    if values.shape[-1] == 1:
        return share[..., 0]
    return -(share * jnp.log(nonzero(share))).sum(-1) / jnp.log(values.shape[-1])


def stable_rank_of(values: Values) -> Measure:
    share = _shares(values)
    return share.sum(-1) / nonzero(share.max(-1))


def residual_up_to_scale_of(values: Values) -> Measure:
    return _distance_from_one(_shares(values) * values.shape[-1])


def _distance_from_one(energy: Values) -> Measure:
    return jnp.sqrt(jnp.mean(jnp.square(energy - 1), -1))


def _shares(values: Values) -> Values:
    """Returns the share of the energy in each direction; all zero for the zero matrix."""
    energy = jnp.square(values)
    return energy / nonzero(energy.sum(-1, keepdims=True))


def _root_mean_square(matrices: AnyMatrices) -> Measure:
    """Returns the root mean square; entries are scaled first, so that squares stay in range."""
    wide = _widened(matrices)
    largest = nonzero(jnp.max(jnp.abs(wide), axis=_MATRIX, keepdims=True, initial=0))
    entries = max(1, math.prod(matrices.shape[-2:]))
    return largest[..., 0, 0] * jnp.sqrt(jnp.square(wide / largest).sum(_MATRIX) / entries)


def _widened(matrices: AnyMatrices) -> AnyMatrices:
    return matrices.astype(wide_dtype(matrices.dtype))


def _checked(matrices: AnyMatrices) -> AnyMatrices:
    matrices = jnp.asarray(matrices)
    if not jnp.issubdtype(matrices.dtype, jnp.floating):
        raise _checks.refused(f"the matrices are {matrices.dtype}", "Give real ones", TypeError)
    if matrices.ndim < 2:
        raise _checks.refused(
            f"an array of shape {matrices.shape} holds no matrix", "Give at least two axes"
        )
    return matrices
