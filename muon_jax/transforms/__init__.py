"""Optax gradient transformations around orthogonalisation."""

from muon_jax.transforms._momentum_rms import MomentumRmsState as MomentumRmsState
from muon_jax.transforms._momentum_rms import scale_by_momentum_rms as scale_by_momentum_rms
from muon_jax.transforms._muon import MuonState as MuonState
from muon_jax.transforms._muon import scale_by_muon as scale_by_muon
from muon_jax.transforms._orthogonalize import orthogonalize_tree as orthogonalize_tree
from muon_jax.transforms._quantize_state import Int8Blocks as Int8Blocks
from muon_jax.transforms._quantize_state import QuantizedState as QuantizedState
from muon_jax.transforms._quantize_state import quantize_state as quantize_state
from muon_jax.transforms._scale import hidden_size as hidden_size
from muon_jax.transforms._scale_by_path import scale_by_path as scale_by_path
from muon_jax.transforms._skip_nonfinite import SkipNonfiniteState as SkipNonfiniteState
from muon_jax.transforms._skip_nonfinite import skip_nonfinite as skip_nonfinite
from muon_jax.transforms.precondition import SecondMoment as SecondMoment
from muon_jax.transforms.precondition import Soap as Soap

__all__ = [
    "Int8Blocks",
    "MomentumRmsState",
    "MuonState",
    "QuantizedState",
    "SecondMoment",
    "SkipNonfiniteState",
    "Soap",
    "hidden_size",
    "orthogonalize_tree",
    "quantize_state",
    "scale_by_momentum_rms",
    "scale_by_muon",
    "scale_by_path",
    "skip_nonfinite",
]


def __dir__() -> list[str]:
    return __all__
