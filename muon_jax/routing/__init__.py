"""Which leaf goes to Muon, which to another optimizer, and with which view."""

from muon_jax.routing._context import Leaf as Leaf
from muon_jax.routing._route import label_params as label_params
from muon_jax.routing._route import matrix_axes as matrix_axes
from muon_jax.routing._rule import Rule as Rule
from muon_jax.routing._traced import TracedAxes as TracedAxes
from muon_jax.routing._traced import TracedLeaf as TracedLeaf
from muon_jax.routing.trace import trace_axes as trace_axes

__all__ = ["Leaf", "Rule", "TracedAxes", "TracedLeaf", "label_params", "matrix_axes", "trace_axes"]


def __dir__() -> list[str]:
    return __all__
