"""The polar factor by SVD, and by the coupled Newton-Schulz iteration."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.polar._normalize import Square, Wide, identity_like, on_wide, schatten_norm
from muon_jax.polar._precision import ARITHMETICS

_EXACT = ARITHMETICS["float32"]
_multiply = _EXACT.multiply

_GROWTH = 1.5**2  # of a small eigenvalue, in a coupled step


@dataclass(frozen=True)
class PolarBySvd:
    """The value that `polar_by_svd` returns."""

    @_checks.named("polar_by_svd")
    def __call__(self, matrices: Matrices) -> Matrices:
        return on_wide(matrices, _by_svd)


def polar_by_svd() -> PolarBySvd:
    """Makes the exact orthogonalizer: U Vᵀ of the singular value decomposition U S Vᵀ.

    It is the reference for the others, and slow, because backends run an SVD serially in many small
    kernels. Directions whose singular value is zero up to rounding stay zero, as under an
    iteration, so the zero matrix maps to itself.

    Returns:
      An orthogonalizer: a callable from (batch, rows, cols) to the same shape and dtype.

    Examples:
      >>> import jax, muon_jax
      >>> x = jax.random.normal(jax.random.key(0), (1, 3, 5))
      >>> y = muon_jax.polar_by_svd()(x)[0]
      >>> bool(jax.numpy.allclose(y @ y.T, jax.numpy.eye(3), atol=1e-5))
      True
    """
    return PolarBySvd()


class Decomposed(NamedTuple):
    """A singular value decomposition, and which of its values exceed rounding."""

    left: Square
    values: Float[Array, "*batch rows"]
    right: Wide
    present: Bool[Array, "*batch rows"]

    def with_values(self, values: Float[Array, "*batch rows"]) -> Wide:
        """Returns the matrix with the same singular vectors and these singular values."""
        return _multiply(values[..., None, :] * self.left, self.right)


def decompose(matrix: Wide) -> Decomposed:
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    # The root of the long side, or a vector of millions of entries would count as noise.
    rows, cols = matrix.shape[-2:]
    noise = max(rows, math.sqrt(cols)) * jnp.finfo(matrix.dtype).eps * values[..., :1]
    return Decomposed(left, values, right, values > noise)


def _by_svd(matrix: Wide) -> Wide:
    spectrum = decompose(matrix)
    return spectrum.with_values(jnp.where(spectrum.present, 1.0, 0.0))


@dataclass(frozen=True)
class InverseSqrt:
    """The value that `inverse_sqrt` returns."""

    steps: int

    @_checks.named("inverse_sqrt")
    def __call__(self, matrices: Matrices) -> Matrices:
        return on_wide(matrices, self._polar)

    def _polar(self, matrix: Wide) -> Wide:
        gram = _EXACT.gram(matrix)
        bound = schatten_norm(_multiply(gram, gram))
        gram = gram / jnp.square(bound)
        identity = identity_like(gram)
        # Rounding makes zero eigenvalues negative. They grow with every step, and diverge below
        # minus one; if there are enough steps to reach that, a shift keeps them positive.
        noise = math.sqrt(gram.shape[-1]) * float(jnp.finfo(gram.dtype).eps)
        if self.steps * math.log(_GROWTH) > -math.log(noise):
            gram = gram + noise * identity

        def step(_: int, pair: tuple[Square, Square]) -> tuple[Square, Square]:
            root, inverse = pair
            factor = 1.5 * identity - 0.5 * _multiply(inverse, root)
            return _multiply(root, factor), _multiply(factor, inverse)

        # In the first step Z is the identity, so it needs no products with Z.
        factor = 1.5 * identity - 0.5 * gram
        first = (_multiply(gram, factor), factor)
        _, inverse = lax.fori_loop(1, self.steps, step, first)
        return _multiply(inverse / bound, matrix)


@_checks.named("inverse_sqrt")
def inverse_sqrt(steps: int = 15) -> InverseSqrt:
    """Makes the orthogonalizer (XXᵀ)^(-1/2) X by the coupled Newton-Schulz iteration.

    From Y = XXᵀ and Z = I, each step multiplies both by (3I − ZY)/2; Y converges to the square root
    and Z to its inverse. Only the last product has the long side, but a small singular value σ
    enters as σ² and grows at most by 2.25 a step, so `newton_schulz` reaches the same accuracy with
    a fraction of the products. Use it to compare with other implementations of this iteration.

    Args:
      steps: iterations, at least 1. Fifteen make singular values above a hundredth of the largest
        one.

    Returns:
      An orthogonalizer: a callable from (batch, rows, cols) to the same shape and dtype.

    Raises:
      TypeError or ValueError: if `steps` is not an integer of at least 1.

    Examples:
      >>> import jax, muon_jax
      >>> y = muon_jax.inverse_sqrt()(jax.random.normal(jax.random.key(0), (1, 3, 5)))[0]
      >>> bool(jax.numpy.allclose(y @ y.T, jax.numpy.eye(3), atol=1e-3))
      True

    References:
      Higham, `Functions of Matrices: Theory and Computation`, SIAM 2008, eq. 6.35
    """
    _checks.check_positive_int("steps", steps)
    return InverseSqrt(steps)
