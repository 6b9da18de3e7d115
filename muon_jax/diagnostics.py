"""Looks at what an optimizer does: for tests and for the eye, never inside a training step."""

from muon_jax._collectives import Collective as Collective
from muon_jax._collectives import Collectives as Collectives
from muon_jax._collectives import assert_lean as assert_lean
from muon_jax._collectives import collectives as collectives
