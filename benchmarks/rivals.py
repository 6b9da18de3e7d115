"""The orthogonalizers of optax.contrib.muon, which the benchmarks compare with ours."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from optax.contrib import _muon as optax_muon

KELLER = (3.4445, -4.7750, 2.0315)
"""The default coefficients of optax.contrib.muon (Jordan et al. 2024)."""


def optax_map(
    coefficients: Sequence[Any] = KELLER, preconditioning: str = "frobenius"
) -> Callable[[Any], Any]:
    """Returns five steps of optax's Newton-Schulz iteration, on a (batch, rows, cols) array."""

    def call(batch: Any) -> Any:
        numbers = jnp.asarray(coefficients)
        if len(batch) == 1:
            args = (batch[0], numbers, 5, preconditioning, 1e-8)
            return optax_muon.orthogonalize_via_newton_schulz(*args)[None]
        axes = optax_muon.MuonDimensionNumbers(-2, -1)
        args = (batch, numbers, 5, preconditioning, 1e-8, axes)
        return optax_muon.orthogonalize_via_newton_schulz(*args)

    return call
