"""Muon for JAX: Optax transformations that orthogonalise the momentum of weight matrices."""

from importlib.metadata import version as _version

from muon_jax import attention as attention
from muon_jax import diagnostics as diagnostics
from muon_jax import migrate as migrate
from muon_jax import recipes as recipes
from muon_jax.clip import QKClipState as QKClipState
from muon_jax.clip import QKPart as QKPart
from muon_jax.clip import QKTarget as QKTarget
from muon_jax.clip import clip_qk as clip_qk
from muon_jax.explain import ExplainedLeaf as ExplainedLeaf
from muon_jax.explain import Explanation as Explanation
from muon_jax.explain import explain as explain
from muon_jax.mesh import Distribution as Distribution
from muon_jax.mesh import zero1_shardings as zero1_shardings
from muon_jax.optimizers import adamw as adamw
from muon_jax.optimizers import momentum_rms as momentum_rms
from muon_jax.optimizers import muon as muon
from muon_jax.optimizers import muon_clip as muon_clip
from muon_jax.polar import inverse_sqrt as inverse_sqrt
from muon_jax.polar import newton_schulz as newton_schulz
from muon_jax.polar import polar_by_svd as polar_by_svd
from muon_jax.polar import polar_to as polar_to
from muon_jax.polar import steepest_descent as steepest_descent
from muon_jax.routing import Leaf as Leaf
from muon_jax.routing import Rule as Rule
from muon_jax.routing import TracedAxes as TracedAxes
from muon_jax.routing import TracedLeaf as TracedLeaf
from muon_jax.routing import label_params as label_params
from muon_jax.routing import matrix_axes as matrix_axes
from muon_jax.routing import trace_axes as trace_axes
from muon_jax.transforms import MomentumRmsState as MomentumRmsState
from muon_jax.transforms import MuonState as MuonState
from muon_jax.transforms import QuantizedState as QuantizedState
from muon_jax.transforms import SecondMoment as SecondMoment
from muon_jax.transforms import SkipNonfiniteState as SkipNonfiniteState
from muon_jax.transforms import Soap as Soap
from muon_jax.transforms import hidden_size as hidden_size
from muon_jax.transforms import orthogonalize_tree as orthogonalize_tree
from muon_jax.transforms import quantize_state as quantize_state
from muon_jax.transforms import scale_by_momentum_rms as scale_by_momentum_rms
from muon_jax.transforms import scale_by_muon as scale_by_muon
from muon_jax.transforms import scale_by_path as scale_by_path
from muon_jax.transforms import skip_nonfinite as skip_nonfinite
from muon_jax.views import MatrixAxes as MatrixAxes
from muon_jax.views import Split as Split

__version__ = _version("muon_jax")
__all__ = [
    "Distribution",
    "ExplainedLeaf",
    "Explanation",
    "Leaf",
    "MatrixAxes",
    "MomentumRmsState",
    "MuonState",
    "QKClipState",
    "QKPart",
    "QKTarget",
    "QuantizedState",
    "Rule",
    "SecondMoment",
    "SkipNonfiniteState",
    "Soap",
    "Split",
    "TracedAxes",
    "TracedLeaf",
    "adamw",
    "attention",
    "clip_qk",
    "diagnostics",
    "explain",
    "hidden_size",
    "inverse_sqrt",
    "label_params",
    "matrix_axes",
    "migrate",
    "momentum_rms",
    "muon",
    "muon_clip",
    "newton_schulz",
    "orthogonalize_tree",
    "polar_by_svd",
    "polar_to",
    "quantize_state",
    "recipes",
    "scale_by_momentum_rms",
    "scale_by_muon",
    "scale_by_path",
    "skip_nonfinite",
    "steepest_descent",
    "trace_axes",
    "zero1_shardings",
]


def __dir__() -> list[str]:
    return __all__
