"""Muon for JAX: Optax transformations that orthogonalise the momentum of weight matrices."""

from importlib.metadata import version as _version

from muon_jax import attention as attention
from muon_jax import diagnostics as diagnostics
from muon_jax import migrate as migrate
from muon_jax import recipes as recipes
from muon_jax._distribution import Distribution as Distribution
from muon_jax._explain import explain as explain
from muon_jax._explanation import ExplainedLeaf as ExplainedLeaf
from muon_jax._explanation import Explanation as Explanation
from muon_jax._matrix_axes import MatrixAxes as MatrixAxes
from muon_jax._matrix_axes import Split as Split
from muon_jax._momentum_rms import MomentumRmsState as MomentumRmsState
from muon_jax._momentum_rms import scale_by_momentum_rms as scale_by_momentum_rms
from muon_jax._muon import MuonState as MuonState
from muon_jax._muon import scale_by_muon as scale_by_muon
from muon_jax._newton_schulz import newton_schulz as newton_schulz
from muon_jax._polar import inverse_sqrt as inverse_sqrt
from muon_jax._polar import polar_by_svd as polar_by_svd
from muon_jax._polar_to import polar_to as polar_to
from muon_jax._qk_clip import QKClipState as QKClipState
from muon_jax._qk_clip import clip_qk as clip_qk
from muon_jax._qk_targets import QKPart as QKPart
from muon_jax._qk_targets import QKTarget as QKTarget
from muon_jax._recipes import momentum_rms as momentum_rms
from muon_jax._recipes import muon as muon
from muon_jax._recipes import muon_clip as muon_clip
from muon_jax._routing import label_params as label_params
from muon_jax._routing import matrix_axes as matrix_axes
from muon_jax._rules import Rule as Rule
from muon_jax._scaling import hidden_size as hidden_size
from muon_jax._schatten import steepest_descent as steepest_descent
from muon_jax._skip_nonfinite import SkipNonfiniteState as SkipNonfiniteState
from muon_jax._skip_nonfinite import skip_nonfinite as skip_nonfinite
from muon_jax._state_sharding import zero1_shardings as zero1_shardings
from muon_jax._tree import orthogonalize_tree as orthogonalize_tree

__version__ = _version("muon_jax")
