"""The published Muons by name, with the learning rates and number formats of their sources."""

from muon_jax.optimizers._published import keller as keller
from muon_jax.optimizers._published import kimi_k2 as kimi_k2
from muon_jax.optimizers._published import moonlight as moonlight
from muon_jax.optimizers._published import optax as optax
from muon_jax.optimizers._published import procrustes as procrustes
from muon_jax.optimizers._published import torch as torch

__all__ = [
    "keller",
    "kimi_k2",
    "moonlight",
    "optax",
    "procrustes",
    "torch",
]


def __dir__() -> list[str]:
    return __all__
