"""Looks at what an optimizer does: spectra and sizes of its steps, and what devices send for it."""

from muon_jax._collectives import Collective as Collective
from muon_jax._collectives import Collectives as Collectives
from muon_jax._collectives import assert_lean as assert_lean
from muon_jax._collectives import collectives as collectives
from muon_jax._measurements import Measurement as Measurement
from muon_jax._measurements import by_matrix as by_matrix
from muon_jax._measurements import measure as measure
from muon_jax._monitor import MonitorState as MonitorState
from muon_jax._monitor import monitor as monitor
from muon_jax._spectra import orthogonality_residual as orthogonality_residual
from muon_jax._spectra import singular_value_entropy as singular_value_entropy
from muon_jax._spectra import stable_rank as stable_rank
from muon_jax._spectra import update_to_weight_rms as update_to_weight_rms
