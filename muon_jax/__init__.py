"""Muon for JAX: Optax transformations that orthogonalise the momentum of weight matrices."""

from importlib.metadata import version as _version

__version__ = _version("muon_jax")
