"""Upper bounds on the cost of a step on eight devices, which the tests assert.

They are for a transformer of 8 layers. The weights of one layer have 12 · width² entries.
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
"""Collectives of the four matrix shapes of a layer.

Each shape crosses every mesh axis that shards it, once in each direction.
"""

WIRE: Mapping[str, float] = {"2d": 1.5}
"""Bound on the bytes received, divided by `wire_bytes`; 1.05 for the layouts that are not here.

In "2d", a matrix crosses two mesh axes one after the other.
"""

TEMPORARY_SHARE: Mapping[str, float] = {
    "replicated": 216 / 96,
    "fsdp": 65 / 96,
    "tensor": 65 / 96,
    "2d": 65 / 96,
    "hsdp": 75 / 96,
}
"""Bound on the memory besides inputs and outputs, divided by the bytes of all weights."""


def wire_bytes(weights: float, shards: int, replicas: int) -> float:
    """Returns the bytes that move shards to their owners and back, and results to the replicas."""
    there_and_back = 2 * weights / (shards * replicas) * (shards - 1) / shards
    return there_and_back + weights / shards * (replicas - 1) / replicas
