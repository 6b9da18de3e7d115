"""Orthogonalizers: functions from (batch, rows, cols) to the nearest orthogonal matrices."""

from muon_jax.polar._adaptive import polar_to as polar_to
from muon_jax.polar._newton_schulz import newton_schulz as newton_schulz
from muon_jax.polar._schatten import steepest_descent as steepest_descent
from muon_jax.polar._svd import inverse_sqrt as inverse_sqrt
from muon_jax.polar._svd import polar_by_svd as polar_by_svd

__all__ = ["inverse_sqrt", "newton_schulz", "polar_by_svd", "polar_to", "steepest_descent"]


def __dir__() -> list[str]:
    return __all__
