"""Reads from a compiled program what its devices send each other.

The text of the optimised HLO is the only place where all of it stands: the collectives that the
partitioner added, how often a loop runs them, and which devices take part.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from muon_jax._checks import invalid, refused

_RECEIVED: Mapping[str, Callable[[int, int], float]] = {
    "all-gather": lambda size, group: size * (group - 1) / group,
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "all-to-all": lambda size, group: size * (group - 1) / group,
    "collective-broadcast": lambda size, group: size,
    "collective-permute": lambda size, group: size,
    "ragged-all-to-all": lambda size, group: size,
    "reduce-scatter": lambda size, group: size * (group - 1),
}
"""Bytes that a device receives on a ring, by the bytes of the result and the size of a group.

What a ragged all-to-all receives is known only when it runs; this is the most.
"""

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(to_apply|calls|body|condition|(?:branch|called)_computations|(?:true|false)_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
_GROUP_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUP_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUP_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a compiled program.

    Attributes:
      kind: its name in HLO, such as `"all-to-all"`.
      group: how many devices take part in it together.
      times: how often one run of the program carries it out; a loop of unknown length counts as
        one time.
      received_bytes: what one device receives by it in one run of the program, on a ring.
      in_loop: whether it stands in a loop.
      in_branch: whether it stands in a conditional.
    """

    kind: str
    group: int
    times: int
    received_bytes: float
    in_loop: bool
    in_branch: bool


@dataclasses.dataclass(frozen=True)
class Collectives:
    """What the devices send each other in one run of a compiled program.

    Attributes:
      operations: every collective in the order of the program.
    """

    operations: tuple[Collective, ...]

    @property
    def count(self) -> int:
        """How many collectives are carried out."""
        return sum(each.times for each in self.operations)

    @property
    def received_bytes(self) -> float:
        """What one device receives."""
        return sum(each.received_bytes for each in self.operations)

    @property
    def nested(self) -> "Collectives":
        """Those in a loop or a conditional."""
        return self._those(lambda each: each.in_loop or each.in_branch)

    def by_kind(self) -> dict[str, "Collectives"]:
        kinds = sorted({each.kind for each in self.operations})
        return {kind: self._those(lambda each, kind=kind: each.kind == kind) for kind in kinds}

    def _those(self, wanted: Callable[[Collective], bool]) -> "Collectives":
        return Collectives(tuple(each for each in self.operations if wanted(each)))

    def __str__(self) -> str:
        lines = [
            f"{each.count} {kind}, {each.nested.count} in loops or branches: "
            f"{each.received_bytes / 2**20:.2f} MiB to each device"
            for kind, each in self.by_kind().items()
        ]
        return "\n".join(lines) or "no collectives"


def collectives(compiled: Any) -> Collectives:
    """Lists what the devices of a compiled program send each other.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns.

    Returns:
      Every collective with its count, its bytes and whether it stands in a loop. Both branches
      of a conditional count.

    Raises:
      TypeError: it is a function, or what is not yet compiled.

    Examples:
      >>> import jax
      >>> print(collectives(jax.jit(jax.numpy.sin).lower(1.0).compile()))
      no collectives
    """
    text = compiled.as_text() if hasattr(compiled, "as_text") else ""
    computations, entry = _computations(text)
    if not entry:
        remedy = "give a compiled program, as jax.jit(f).lower(...).compile() returns it"
        raise invalid("diagnostics.collectives", "compiled", compiled, remedy, TypeError)
    partitions = _PARTITIONS.search(text)
    return Collectives(
        tuple(_walk(computations, entry, int(partitions[1]) if partitions else 1, 1, False, False))
    )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    operation: str
    rest: str


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of every computation, and the name of the first that runs."""
    computations: dict[str, list[_Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            entry = current if header[1] else entry
            computations[current] = []
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(*found.groups()))
    return computations, entry


def _walk(
    computations: Mapping[str, list[_Instruction]],
    name: str,
    partitions: int,
    times: int,
    in_loop: bool,
    in_branch: bool,
) -> Iterator[Collective]:
    """Follows every call, multiplying by the trips of loops."""
    instructions = computations[name]
    # An asynchronous collective names buffers beside its result; its end names the result alone.
    results = {
        started: each.result
        for each in instructions
        if each.operation.endswith("-done")
        for started in _NAME.findall(each.rest)
    }
    for each in instructions:
        kind = each.operation.removesuffix("-start")
        if kind in _RECEIVED:
            group = _group_size(each.rest, partitions)
            size = _bytes(results.get(each.name, each.result))
            if group > 1:
                received = times * _RECEIVED[kind](size, group)
                yield Collective(kind, group, times, received, in_loop, in_branch)
            continue
        loops = each.operation == "while"
        trips = _TRIPS.search(each.rest) if loops else None
        for role, called in _CALLED.findall(each.rest):
            for inner in _NAME.findall(called):
                yield from _walk(
                    computations,
                    inner,
                    partitions,
                    times * (int(trips[1]) if trips and role == "body" else 1),
                    in_loop or loops,
                    in_branch or each.operation == "conditional",
                )


def _group_size(rest: str, partitions: int) -> int:
    """Reads replica groups, written as lists, as a count, or as axes of a mesh."""
    if listed := _GROUP_LISTED.search(rest):
        return len(listed[1].split(","))
    if counted := _GROUP_COUNTED.search(rest):
        return int(counted[1])
    if of_mesh := _GROUP_OF_MESH.search(rest):
        sizes = dict(_MESH_AXIS.findall(of_mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", of_mesh[2]))
    return partitions


def _bytes(result: str) -> int:
    """Adds up the arrays of a type; a bool or anything unnamed takes one byte an entry."""
    total = 0
    for _, bits, dims in _ARRAY.findall(result):
        entries = math.prod(int(size) for size in dims.split(",") if size)
        total += entries * max(int(bits or 8), 8) // 8
    return total


def assert_lean(
    compiled: Any,
    *,
    count: int,
    received_bytes: float | None = None,
    baseline: Any = None,
    nested: bool = False,
) -> None:
    """Fails where a training step communicates more than its optimizer needs.

    Put it into a test of your own step, with the same step under an elementwise optimizer such as
    AdamW as the baseline: what is left is what Muon adds.

    Args:
      compiled: the step, as `jax.jit(step).lower(...).compile()` returns it.
      count: how many collectives it may carry out beyond the baseline.
      received_bytes: how many bytes a device may receive beyond the baseline; None does not ask.
      baseline: a compiled step whose communication is taken for granted; None is none.
      nested: whether what is added may stand in a loop or a conditional, as it does in a scan
        over steps.

    Raises:
      AssertionError: it communicates more. The message lists what was found.

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
            "diagnostics.assert_lean",
            f"the program has {' and '.join(problems)}{beyond}",
            f"All of its communication:\n{found}",
            AssertionError,
        )


def _counted(collectives: int) -> str:
    return f"{collectives} collective{'s' * (collectives != 1)}"
