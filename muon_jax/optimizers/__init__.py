"""Whole optimizers: Muon for matrices, another optimizer for all other parameters."""

from muon_jax.optimizers._fallback import adamw as adamw
from muon_jax.optimizers._fallback import momentum_rms as momentum_rms
from muon_jax.optimizers._muon import muon as muon
from muon_jax.optimizers._muon import muon_clip as muon_clip

__all__ = ["adamw", "momentum_rms", "muon", "muon_clip"]


def __dir__() -> list[str]:
    return __all__
