"""Optimizers by name: published Muons, and the settings of `muon` that trained best here.

Published ones have the learning rates and number formats of their sources.
"""

from muon_jax.optimizers._published import keller as keller
from muon_jax.optimizers._published import kimi_k2 as kimi_k2
from muon_jax.optimizers._published import moonlight as moonlight
from muon_jax.optimizers._published import optax as optax
from muon_jax.optimizers._published import procrustes as procrustes
from muon_jax.optimizers._published import torch as torch
from muon_jax.optimizers._strongest import best as best
from muon_jax.optimizers._strongest import strongest as strongest

__all__ = ["best", "keller", "kimi_k2", "moonlight", "optax", "procrustes", "strongest", "torch"]


def __dir__() -> list[str]:
    return __all__
