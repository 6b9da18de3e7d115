"""Which leaf goes to Muon, which to another optimizer, and with which view."""

from muon_jax.routing._context import Leaf as Leaf
from muon_jax.routing._route import label_params as label_params
from muon_jax.routing._route import matrix_axes as matrix_axes
from muon_jax.routing._rule import Rule as Rule

__all__ = [
    "Leaf",
    "Rule",
    "label_params",
    "matrix_axes",
]


def __dir__() -> list[str]:
    return __all__
