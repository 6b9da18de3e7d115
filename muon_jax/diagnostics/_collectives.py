"""Lists the collectives of a compiled program, and asserts a bound on them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from muon_jax._checks import invalid, named, refused
from muon_jax.diagnostics._hlo import Collective, read_program


@dataclasses.dataclass(frozen=True)
class Collectives:
    """The communication of one run of a compiled program.

    Attributes:
      operations: every collective, in program order.
    """

    operations: tuple[Collective, ...]

    @property
    def count(self) -> int:
        """The number of collectives that run."""
        return sum(each.times for each in self.operations)

    @property
    def received_bytes(self) -> float:
        """The bytes that one device receives."""
        return sum(each.received_bytes for each in self.operations)

    @property
    def nested(self) -> "Collectives":
        """The collectives in a loop or a conditional."""
        return self._filtered(lambda each: each.in_loop or each.in_branch)

    def by_kind(self) -> dict[str, "Collectives"]:
        """Returns the collectives of each kind, such as `"all-to-all"`."""
        kinds = sorted({each.kind for each in self.operations})
        return {kind: self._filtered(lambda each, kind=kind: each.kind == kind) for kind in kinds}

    def _filtered(self, condition: Callable[[Collective], bool]) -> "Collectives":
        return Collectives(tuple(filter(condition, self.operations)))

    def __str__(self) -> str:
        lines = [
            f"{each.count} {kind}, {each.nested.count} in loops or branches: "
            f"{each.received_bytes / 2**20:.2f} MiB to each device"
            for kind, each in self.by_kind().items()
        ]
        return "\n".join(lines) or "no collectives"


@named("diagnostics.collectives")
def collectives(compiled: Any) -> Collectives:
    """Lists the collectives of a compiled program.

    Args:
      compiled: the result of `jax.jit(f).lower(...).compile()`.

    Returns:
      Every collective with its count, its bytes and whether it is in a loop. Both branches of a
      conditional count.

    Raises:
      TypeError: it is a function, or not compiled.

    Examples:
      >>> import jax
      >>> print(collectives(jax.jit(jax.numpy.sin).lower(1.0).compile()))
      no collectives
    """
    text = compiled.as_text() if hasattr(compiled, "as_text") else ""
    program = read_program(text)
    if program is None:
        remedy = "give a compiled program, the result of jax.jit(f).lower(...).compile()"
        raise invalid("compiled", compiled, remedy, TypeError)
    return Collectives(program.collectives)


@named("diagnostics.assert_lean")
def assert_lean(
    compiled: Any,
    *,
    count: int,
    received_bytes: float | None = None,
    baseline: Any = None,
    nested: bool = False,
) -> None:
    """Asserts that a training step communicates no more than its optimizer needs.

    Use it in a test of your own step, with the same step under an elementwise optimizer such as
    AdamW as the baseline: the difference is what Muon adds.

    Args:
      compiled: the step, the result of `jax.jit(step).lower(...).compile()`.
      count: the largest number of collectives beyond the baseline.
      received_bytes: the largest number of bytes that a device receives beyond the baseline; None
        is no bound.
      baseline: a compiled step to compare with; None is no communication.
      nested: whether added collectives may be in a loop or a conditional, as in a scan over steps.

    Raises:
      AssertionError: it communicates more. The message lists all collectives.

    Examples:
      >>> import jax
      >>> assert_lean(jax.jit(jax.numpy.sin).lower(1.0).compile(), count=0)
    """
    found = collectives(compiled)
    granted = Collectives(()) if baseline is None else collectives(baseline)
    added = found.count - granted.count
    added_bytes = found.received_bytes - granted.received_bytes
    added_nested = found.nested.count - granted.nested.count

    problems = []
    if added > count:
        problems.append(f"{_counted(added)}, not {count}")
    if received_bytes is not None and added_bytes > received_bytes:
        problems.append(f"{added_bytes:.0f} bytes to each device, not {received_bytes:.0f}")
    if added_nested > 0 and not nested:
        problems.append(f"{_counted(added_nested)} in loops or branches, not 0")
    if problems:
        beyond = "" if baseline is None else " beyond the baseline"
        raise refused(
            f"the program has {' and '.join(problems)}{beyond}",
            f"All of its communication:\n{found}",
            AssertionError,
        )


def _counted(collectives: int) -> str:
    return f"{collectives} collective{'s' * (collectives != 1)}"
