"""What a step on eight devices may cost, for the tests that assert it and the benchmark that shows.

Of a transformer of 8 layers, whose weights of one layer are 12 · width² entries.
"""

from collections.abc import Mapping

SHARDS_AND_REPLICAS: Mapping[str, tuple[int, int]] = {
    "replicated": (1, 8),
    "fsdp": (8, 1),
    "tensor": (8, 1),
    "2d": (8, 1),
    "hsdp": (4, 2),
}
COLLECTIVES: Mapping[str, Mapping[str, int]] = {
    "replicated": {"all-gather": 4},
    "fsdp": {"all-to-all": 8},
    "tensor": {"all-to-all": 8},
    "2d": {"all-to-all": 16},
    "hsdp": {"all-to-all": 8, "all-gather": 4},
}
"""For the four shapes of a layer: each crosses every mesh axis that shards it once each way."""

WIRE: Mapping[str, float] = {"2d": 1.5}
"""Bytes over `wire_bytes`, where a matrix crosses two mesh axes one after the other; else 1.05."""

TEMPORARY_SHARE: Mapping[str, float] = {
    "replicated": 216 / 96,
    "fsdp": 65 / 96,
    "tensor": 65 / 96,
    "2d": 65 / 96,
    "hsdp": 75 / 96,
}
"""Memory beside inputs and outputs, over the bytes of all weights, at most."""


def wire_bytes(weights: float, shards: int, replicas: int) -> float:
    """Shards to their owners and back, then the results to the replicas."""
    there_and_back = 2 * weights / (shards * replicas) * (shards - 1) / shards
    return there_and_back + weights / shards * (replicas - 1) / replicas
