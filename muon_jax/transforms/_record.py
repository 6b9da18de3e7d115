"""Records what transformations do with parameters, for `explain`, which calls their `init`."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

from muon_jax._types import Orthogonalizer, Scale
from muon_jax.routing._route import Route
from muon_jax.views._matrix_axes import MatrixAxes


@dataclasses.dataclass(frozen=True)
class RecordedLeaf:
    """What an optimizer does with one parameter.

    Attributes:
      route: its optimizer and view, with the reason.
      orthogonalizer: for its matrices.
      scale: for its matrices.
      weight_decay: a number, `"schedule"`, `"injected"`, or None if another optimizer decides.
      factor: factor on its update.
      axes: the view under which it is orthogonalised, which may separate parts of the route's.
    """

    route: Route
    orthogonalizer: Orthogonalizer
    scale: Scale
    weight_decay: float | str | None
    factor: float = 1.0
    axes: MatrixAxes | None = None


@dataclasses.dataclass
class Record:
    """What was recorded so far, by path.

    Attributes:
      leaves: the parameters that optimizers route.
      factors: the factors of other transformations on updates.
      notices: sentences about other transformations.
    """

    leaves: dict[str, RecordedLeaf] = dataclasses.field(default_factory=dict)
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    notices: list[str] = dataclasses.field(default_factory=list)


_RECORD: ContextVar[Record | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Collects the arguments of `record`, `record_factors` and `record_notice`."""
    found = Record()
    token = _RECORD.set(found)
    try:
        yield found
    finally:
        _RECORD.reset(token)


def record(leaves: Sequence[RecordedLeaf]) -> bool:
    """Records what an optimizer does; returns False outside of `recording`."""
    found = _RECORD.get()
    if found is not None:
        found.leaves |= {leaf.route.path: leaf for leaf in leaves}
    return found is not None


def record_factors(factors: Mapping[str, float]) -> None:
    """Records factors on updates by path."""
    found = _RECORD.get()
    if found is not None:
        for path, factor in factors.items():
            found.factors[path] = found.factors.get(path, 1.0) * factor


def record_notice(notice: str) -> None:
    """Records what `explain` should say below the table."""
    found = _RECORD.get()
    if found is not None:
        found.notices.append(notice)
