"""Routes read from the model: the walk through the jaxpr of a loss, and what it finds."""

from muon_jax.routing.trace._trace_axes import trace_axes as trace_axes

__all__ = ["trace_axes"]


def __dir__() -> list[str]:
    return __all__
