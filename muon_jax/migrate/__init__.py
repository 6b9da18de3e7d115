"""Converts optimizer states, so that a run continues with another optimizer."""

from muon_jax.migrate._carry import from_adamw as from_adamw
from muon_jax.migrate._carry import from_optax as from_optax
from muon_jax.migrate._carry import from_torch as from_torch
from muon_jax.migrate._carry import to_optax as to_optax
from muon_jax.migrate._carry import to_torch as to_torch

__all__ = ["from_adamw", "from_optax", "from_torch", "to_optax", "to_torch"]


def __dir__() -> list[str]:
    return __all__
