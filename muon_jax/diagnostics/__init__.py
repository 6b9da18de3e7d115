"""Measures spectra and sizes of updates, and the communication of compiled programs."""

from muon_jax.diagnostics._collectives import Collectives as Collectives
from muon_jax.diagnostics._collectives import assert_lean as assert_lean
from muon_jax.diagnostics._collectives import collectives as collectives
from muon_jax.diagnostics._hlo import Collective as Collective
from muon_jax.diagnostics._measure import Measurement as Measurement
from muon_jax.diagnostics._measure import by_matrix as by_matrix
from muon_jax.diagnostics._measure import measure as measure
from muon_jax.diagnostics._monitor import MonitorState as MonitorState
from muon_jax.diagnostics._monitor import monitor as monitor
from muon_jax.diagnostics._spectra import orthogonality_residual as orthogonality_residual
from muon_jax.diagnostics._spectra import singular_value_entropy as singular_value_entropy
from muon_jax.diagnostics._spectra import stable_rank as stable_rank
from muon_jax.diagnostics._spectra import update_to_weight_rms as update_to_weight_rms

__all__ = [
    "Collective",
    "Collectives",
    "Measurement",
    "MonitorState",
    "assert_lean",
    "by_matrix",
    "collectives",
    "measure",
    "monitor",
    "orthogonality_residual",
    "singular_value_entropy",
    "stable_rank",
    "update_to_weight_rms",
]


def __dir__() -> list[str]:
    return __all__
