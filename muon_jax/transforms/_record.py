"""What the transformations of this library tell `explain` while it initialises them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

from muon_jax._types import Orthogonalizer, Scale
from muon_jax.routing._route import Route


@dataclasses.dataclass(frozen=True)
class RecordedLeaf:
    """What an optimizer does with one parameter.

    Attributes:
      route: where it goes, and why.
      orthogonalizer: that of its matrices.
      scale: that of its matrices.
      weight_decay: a number, `"schedule"`, `"injected"`, or None where another optimizer decides.
      factor: the factor on its whole step.
    """

    route: Route
    orthogonalizer: Orthogonalizer
    scale: Scale
    weight_decay: float | str | None
    factor: float = 1.0


@dataclasses.dataclass
class Record:
    """What was told so far, by path.

    Attributes:
      optimizers: how many optimizers told something.
      leaves: the parameters that they route.
      factors: factors on the step that other transformations apply.
    """

    optimizers: int = 0
    leaves: dict[str, RecordedLeaf] = dataclasses.field(default_factory=dict)
    factors: dict[str, float] = dataclasses.field(default_factory=dict)


_RECORD: ContextVar[Record | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Collects what `record` and `record_factors` are told."""
    token = _RECORD.set(Record())
    try:
        yield _RECORD.get() or Record()
    finally:
        _RECORD.reset(token)


def record(leaves: Sequence[RecordedLeaf]) -> bool:
    """Tells what an optimizer does; returns whether anything records."""
    found = _RECORD.get()
    if found is None:
        return False
    if leaves:
        found.optimizers += 1
        found.leaves |= {leaf.route.path: leaf for leaf in leaves}
    return True


def record_factors(factors: Mapping[str, float]) -> None:
    """Tells factors on the step by path."""
    found = _RECORD.get()
    if found is not None:
        for path, factor in factors.items():
            found.factors[path] = found.factors.get(path, 1.0) * factor
