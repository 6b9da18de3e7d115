"""Orthogonalises until the measured residual is below a tolerance."""

from dataclasses import dataclass
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.polar._normalize import Square, Wide, identity_like, on_wide
from muon_jax.polar._precision import ARITHMETICS

_EXACT = ARITHMETICS["float32"]

# Float32 rounding leaves a residual of about 1e-6, so a much smaller tolerance is never reached.
_SMALLEST_TOLERANCE = 1e-5

# The quintic Newton-Schulz step, which has derivative 0 at one and cubes the residual.
_POLISH = (15 / 8, -10 / 8, 3 / 8)


_State: TypeAlias = tuple[Wide, Square, Int[Array, ""]]
"""The iterate, its Gram matrix and the number of quintic steps so far."""


@dataclass(frozen=True)
class PolarTo:
    """The value that `polar_to` returns."""

    tolerance: float
    max_steps: int

    @_checks.named("polar_to")
    def __call__(self, matrices: Matrices) -> Matrices:
        return on_wide(matrices, self._polar)

    def _polar(self, matrix: Wide) -> Wide:
        planned = newton_schulz("accurate", dtype="float32").on("cpu").on_wide(matrix)
        state = planned, _EXACT.gram(planned), jnp.zeros((), jnp.int32)
        polished, _, _ = lax.while_loop(self._unfinished, self._polish, state)
        return polished

    def _unfinished(self, state: _State) -> Array:
        _, gram, step = state
        return (step < self.max_steps) & jnp.any(residual(gram) > self.tolerance)

    def _polish(self, state: _State) -> _State:
        matrix, gram, step = state
        linear, cubic, quintic = _POLISH
        factor = cubic * gram + quintic * _EXACT.multiply(gram, gram)
        # Matrices that have converged stay unchanged, so a batch gives the same as a loop.
        better = linear * matrix + _EXACT.multiply(factor, matrix)
        matrix = jnp.where(residual(gram) > self.tolerance, better, matrix)
        return matrix, _EXACT.gram(matrix), step + 1


@_checks.named("polar_to")
def polar_to(tolerance: float = 1e-3, *, max_steps: int = 20) -> PolarTo:
    """Makes the orthogonalizer that iterates until its result is orthogonal to a tolerance.

    The residual of a result X of short side m is ‖XXᵀ − I‖_F / √m, the root mean square of σ² − 1.
    It is computed from the Gram matrix of the next step, without further products. The schedule
    `"accurate"` comes first, then quintic steps, each of which cubes the residual.

    Args:
      tolerance: the largest residual allowed, in [1e-5, 1).
      max_steps: the largest number of quintic steps, at least 1. A singular value of 1e-7 of the
        largest needs about fifteen. Directions whose singular value is zero up to rounding become
        arbitrary ones, as in U Vᵀ of an SVD, after thirty to forty steps. Rows that are exactly
        zero stay zero, and take `max_steps`.

    Returns:
      An orthogonalizer: a callable from (batch, rows, cols) to the same shape and dtype. Every
      matrix of the result has a residual of at most `tolerance`, up to the rounding of its dtype,
      unless `max_steps` was reached.

    Raises:
      TypeError or ValueError: if an argument is out of its range.

    Examples:
      >>> import jax, muon_jax
      >>> y = muon_jax.polar_to(1e-4)(jax.random.normal(jax.random.key(0), (1, 4, 4)))[0]
      >>> float(jax.numpy.linalg.norm(y @ y.T - jax.numpy.eye(4))) <= 1e-4 * 2
      True
    """
    _checks.check_number("tolerance", tolerance)
    if not _SMALLEST_TOLERANCE <= tolerance < 1:
        remedy = f"give a number in [{_SMALLEST_TOLERANCE:g}, 1), which float32 can reach"
        raise _checks.invalid("tolerance", tolerance, remedy)
    _checks.check_positive_int("max_steps", max_steps)
    return PolarTo(tolerance, max_steps)


def residual(gram: Square) -> Float[Array, "*batch 1 1"]:
    """Returns ‖R − I‖_F / √m for a Gram matrix R of size m."""
    identity = identity_like(gram)
    square = jnp.sum(jnp.square(gram - identity), axis=(-2, -1), keepdims=True)
    return jnp.sqrt(square / gram.shape[-1])
