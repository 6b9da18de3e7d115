"""The directions between normalised SGD and Muon: steepest descent under Schatten norms."""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.polar._normalize import Wide, nonzero, on_wide
from muon_jax.polar._svd import decompose

_CALL = "steepest_descent"


@dataclass(frozen=True)
class SteepestDescent:
    """The value that `steepest_descent` returns."""

    p: float

    def __call__(self, matrices: Matrices) -> Matrices:
        return on_wide(_CALL, matrices, self._direction)

    def _direction(self, matrix: Wide) -> Wide:
        spectrum = decompose(matrix)
        values, largest = spectrum.values, spectrum.values[..., :1]
        # A number over itself may round to less than one, which a steep power takes to zero.
        ratios = jnp.where(values < largest, values / nonzero(largest), 1)
        powers = jnp.where(spectrum.present, ratios**self._exponent, 0)
        energy = jnp.sum(jnp.square(powers), axis=-1, keepdims=True)
        rank = jnp.sum(spectrum.present, axis=-1, keepdims=True, dtype=powers.dtype)
        return spectrum.with_values(powers * jnp.sqrt(rank / nonzero(energy)))

    @property
    def _exponent(self) -> float:
        """That of the singular values, q − 1 = 1/(p − 1)."""
        return math.inf if self.p == 1 else 1 / (self.p - 1)


def steepest_descent(p: float) -> SteepestDescent:
    r"""Makes the map to the direction of steepest descent under the Schatten-p norm.

    The Schatten norm :math:`\|X\|_p` is the p-norm of the singular values. Among all steps of one
    such norm, the one along which a loss of gradient :math:`G = U S V^\top` changes fastest is

    .. math::
      D \propto U S^{q - 1} V^\top, \qquad \frac1p + \frac1q = 1, \qquad
      \langle G, D \rangle = \|G\|_q \, \|D\|_p.

    In one parameter this leads from normalised SGD, p = 2, whose direction is G itself, to Muon,
    p = ∞, where every singular value becomes one: a p in between compresses the spectrum to the
    power 1/(p − 1). Below 2 large singular values gain, until at p = 1 the largest alone is left,
    which is unstable where several are nearly equal.

    Theory fixes the direction, and its size only up to the norm it is measured in. Here every p
    gives the Frobenius norm of the polar factor, the root of the rank, so that scales of
    `scale_by_muon` mean the same for all p and learning rates can be compared. Steps of one
    Schatten-p norm instead would be up to √min(rows, cols) smaller at p = 2 than at ∞.

    It is as slow as `polar_by_svd`, which it equals at p = ∞, and leaves out the same directions:
    those whose singular value is zero up to rounding.

    Args:
      p: which norm, in [1, ∞]; `math.inf` is Muon's.

    Returns:
      An orthogonalizer by name and place, though for p < ∞ its results are not orthogonal: a
      callable from (batch, rows, cols) to the same shape and dtype. A matrix of full rank has an
      RMS of 1/√max(rows, cols) for every p, and a largest singular value of up to
      √min(rows, cols), at p = 2 the root of rank over stable rank.

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
    _checks.check_number(_CALL, "p", p)
    if not p >= 1:
        raise _checks.invalid(_CALL, "p", p, "give a number of at least 1, or math.inf")
    return SteepestDescent(float(p))
