"""Assigns matrices to devices, and moves them there and back."""

from muon_jax.mesh._distribution import Distribution as Distribution
from muon_jax.mesh._state import zero1_shardings as zero1_shardings

__all__ = ["Distribution", "zero1_shardings"]


def __dir__() -> list[str]:
    return __all__
