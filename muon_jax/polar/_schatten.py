"""Steepest descent under Schatten norms, from normalised SGD to Muon."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.polar._normalize import Wide, nonzero, on_wide
from muon_jax.polar._svd import decompose


@dataclass(frozen=True)
class SteepestDescent:
    """The value that `steepest_descent` returns."""

    p: float

    @_checks.named("steepest_descent")
    def __call__(self, matrices: Matrices) -> Matrices:
        return on_wide(matrices, self._direction)

    def _direction(self, matrix: Wide) -> Wide:
        spectrum = decompose(matrix)
        values, largest = spectrum.values, spectrum.values[..., :1]
        # x / x may round to less than one, and a large exponent would turn that into zero.
        ratios = jnp.where(values < largest, values / nonzero(largest), 1)
        powers = jnp.where(spectrum.present, ratios**self._exponent, 0)
        energy = jnp.sum(jnp.square(powers), axis=-1, keepdims=True)
        rank = jnp.sum(spectrum.present, axis=-1, keepdims=True, dtype=powers.dtype)
        return spectrum.with_values(powers * jnp.sqrt(rank / nonzero(energy)))

    @property
    def _exponent(self) -> float:
        """The exponent of the singular values, q − 1 = 1/(p − 1)."""
        return math.inf if self.p == 1 else 1 / (self.p - 1)


@_checks.named("steepest_descent")
def steepest_descent(p: float) -> SteepestDescent:
    r"""Makes the function that returns the direction of steepest descent in the Schatten-p norm.

    The Schatten norm :math:`\|X\|_p` is the p-norm of the singular values. Among all steps of equal
    norm, the one that changes a loss with gradient :math:`G = U S V^\top` most is

    .. math::
      D \propto U S^{q - 1} V^\top, \qquad \frac1p + \frac1q = 1, \qquad
      \langle G, D \rangle = \|G\|_q \, \|D\|_p.

    p = 2 is normalised SGD, whose direction is G. p = ∞ is Muon, where every singular value becomes
    one. In between, singular values are raised to the power 1/(p − 1). Below 2 large singular
    values gain; at p = 1 only the largest remains, which is unstable if several are nearly equal.

    Theory leaves the size of the step free. Here it has the Frobenius norm of the polar factor, the
    root of the rank, for every p, so that scales of `scale_by_muon` and learning rates are
    comparable. Steps of equal Schatten-p norm would be up to √min(rows, cols) smaller at p = 2 than
    at ∞.

    It is as slow as `polar_by_svd`, which it equals at p = ∞, and also leaves out directions whose
    singular value is zero up to rounding.

    Args:
      p: the norm, in [1, ∞]; `math.inf` is Muon's.

    Returns:
      A callable from (batch, rows, cols) to the same shape and dtype, for the argument
      `orthogonalizer`; its results are orthogonal only for p = ∞. The result of a matrix of full
      rank has an RMS of 1/√max(rows, cols) for every p, and a largest singular value of up to
      √min(rows, cols); at p = 2 that is the root of rank over stable rank.

    Raises:
      TypeError or ValueError: if `p` is no number in [1, ∞].

    Examples:
      >>> import jax, muon_jax
      >>> gradient = jax.numpy.diag(jax.numpy.array([8.0, 1.0]))[None]
      >>> direction = muon_jax.steepest_descent(4)(gradient)[0]
      >>> [round(float(value), 2) for value in jax.numpy.diag(direction)]
      [1.26, 0.63]

    References:
      Bernstein and Newhouse, `Old Optimizer, New Norm: An Anthology
      <https://arxiv.org/abs/2409.20325>`_, 2024; Cesista, `Steepest Descent Under Schatten-p Norms
      <https://leloykun.github.io/ponder/steepest-descent-schatten-p/>`_, 2025
    """
    _checks.check_number("p", p)
    if not p >= 1:
        raise _checks.invalid("p", p, "give a number of at least 1, or math.inf")
    return SteepestDescent(float(p))
