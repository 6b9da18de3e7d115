"""Orthogonalises until the measured residual is small: accuracy by guarantee, not by plan."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.polar._newton_schulz import newton_schulz
from muon_jax.polar._normalize import Square, Wide, identity_like, on_wide
from muon_jax.polar._precision import ARITHMETICS

_CALL = "polar_to"
_EXACT = ARITHMETICS["float32"]

# Rounding of float32 alone leaves a residual of some 1e-6, so that a smaller tolerance never holds.
_SMALLEST_TOLERANCE = 1e-5

# The fifth-order Newton-Schulz step, flat at one: the residual r becomes some r³.
_POLISH = (15 / 8, -10 / 8, 3 / 8)


@dataclass(frozen=True)
class PolarTo:
    """The value that `polar_to` returns."""

    tolerance: float
    max_steps: int

    def __call__(self, matrices: Matrices) -> Matrices:
        return on_wide(_CALL, matrices, self._polar)

    def _polar(self, matrix: Wide) -> Wide:
        planned = newton_schulz("accurate", dtype="float32").on("cpu").on_wide(matrix)
        state = planned, _EXACT.gram(planned), jnp.zeros((), jnp.int32)
        polished, _, _ = lax.while_loop(self._unfinished, self._polish, state)
        return polished

    def _unfinished(self, state: tuple[Wide, Square, Int[Array, ""]]) -> Array:
        _, gram, step = state
        return (step < self.max_steps) & jnp.any(residual(gram) > self.tolerance)

    def _polish(
        self, state: tuple[Wide, Square, Int[Array, ""]]
    ) -> tuple[Wide, Square, Int[Array, ""]]:
        matrix, gram, step = state
        linear, cubic, quintic = _POLISH
        factor = cubic * gram + quintic * _EXACT.multiply(gram, gram)
        # A matrix of the batch that is done stays as it is, so that batches equal loops.
        better = linear * matrix + _EXACT.multiply(factor, matrix)
        matrix = jnp.where(residual(gram) > self.tolerance, better, matrix)
        return matrix, _EXACT.gram(matrix), step + 1


def polar_to(tolerance: float = 1e-3, *, max_steps: int = 20) -> PolarTo:
    """Makes the orthogonalizer that stops when the result is measured to be orthogonal.

    The residual of a result X of short side m is ‖XXᵀ − I‖_F / √m, the root mean square of σ² − 1.
    It needs only the Gram matrix of the next step, so that measuring is free. A planned schedule
    comes first; fifth-order steps, each of which cubes the residual, polish what it leaves.

    Args:
      tolerance: residual that is small enough, in [1e-5, 1).
      max_steps: bound on the polishing steps, at least 1. A singular value of 1e-7 of the largest
        takes some fifteen. Directions that the matrix lacks up to rounding are filled by rounding,
        as U Vᵀ of an SVD fills them, which takes thirty to forty; rows that are exactly zero stay
        so, and use up this bound.

    Returns:
      An orthogonalizer: a callable from (batch, rows, cols) to the same shape and dtype. Every
      matrix of the result has a residual of at most `tolerance`, up to the rounding of its dtype,
      unless `max_steps` ran out.

    Raises:
      TypeError or ValueError: if an argument is out of its range.

    Examples:
      >>> import jax, muon_jax
      >>> y = muon_jax.polar_to(1e-4)(jax.random.normal(jax.random.key(0), (1, 4, 4)))[0]
      >>> float(jax.numpy.linalg.norm(y @ y.T - jax.numpy.eye(4))) <= 1e-4 * 2
      True
    """
    _checks.check_number(_CALL, "tolerance", tolerance)
    if not _SMALLEST_TOLERANCE <= tolerance < 1:
        remedy = f"give a number in [{_SMALLEST_TOLERANCE:g}, 1), which float32 can reach"
        raise _checks.invalid(_CALL, "tolerance", tolerance, remedy)
    _checks.check_positive_int(_CALL, "max_steps", max_steps)
    return PolarTo(tolerance, max_steps)


def residual(gram: Square) -> Float[Array, "*batch 1 1"]:
    """Returns ‖R − I‖_F / √m for a Gram matrix R of size m."""
    identity = identity_like(gram)
    square = jnp.sum(jnp.square(gram - identity), axis=(-2, -1), keepdims=True)
    return jnp.sqrt(square / gram.shape[-1])
