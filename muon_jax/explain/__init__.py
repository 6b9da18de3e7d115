"""The table of what an optimizer does with every parameter."""

from muon_jax.explain._explain import explain as explain
from muon_jax.explain._explanation import ExplainedLeaf as ExplainedLeaf
from muon_jax.explain._explanation import Explanation as Explanation

__all__ = ["ExplainedLeaf", "Explanation", "explain"]


def __dir__() -> list[str]:
    return __all__
