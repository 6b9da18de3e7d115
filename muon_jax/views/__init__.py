"""Views of a tensor as a batch of matrices."""

from muon_jax.views._matrix_axes import MatrixAxes as MatrixAxes
from muon_jax.views._matrix_axes import Split as Split

__all__ = ["MatrixAxes", "Split"]


def __dir__() -> list[str]:
    return __all__
