"""Reads the text of a compiled program: its collectives, and the estimated cost of its operations.

Only the optimised HLO has the collectives that the partitioner added, the trip counts of loops, and
on TPU the compiler's estimate of the cycles of each operation.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from muon_jax.diagnostics._trips import Arguments, Computation, Instruction, count_trips

_RECEIVED: Mapping[str, Callable[[int, int], float]] = {
    "all-gather": lambda size, group: size * (group - 1) / group,
    "all-reduce": lambda size, group: 2 * size * (group - 1) / group,
    "all-to-all": lambda size, group: size * (group - 1) / group,
    "collective-broadcast": lambda size, group: size,
    "collective-permute": lambda size, group: size,
    "ragged-all-to-all": lambda size, group: size,
    "reduce-scatter": lambda size, group: size * (group - 1),
}
"""Bytes that a device receives on a ring, from the bytes of the result and the size of a group.

For a ragged all-to-all this is an upper bound.
"""

_PRODUCTS = {"convolution", "dot"}
"""Operations of matrix units. On TPU every matrix product is a convolution."""

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(to_apply|calls|body|condition|(?:branch|called)_computations|(?:true|false)_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ASYNC_PART = re.compile(r'"flag_start":"\d')
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
      group: the number of devices in one group.
      times: how often it runs in one run of the program; a loop of unknown trip count counts as one
        trip.
      received_bytes: the bytes that one device receives in one run of the program, on a ring.
      in_loop: whether it is in a loop.
      in_branch: whether it is in a conditional.
    """

    kind: str
    group: int
    times: int
    received_bytes: float
    in_loop: bool
    in_branch: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """What one run of a compiled program does on one device.

    Attributes:
      collectives: each once, in program order; those of all branches.
      product_cycles: the compiler's estimate for matrix products and operations fused with them, in
        the costliest branch of each conditional. Zero if there are no estimates.
      other_cycles: the same for all other operations; collectives have no estimate.
      uncounted_loops: loops of unknown trip count, whose bodies count as run once.
      lines: length of the text.
    """

    collectives: tuple[Collective, ...] = ()
    product_cycles: int = 0
    other_cycles: int = 0
    uncounted_loops: int = 0
    lines: int = 0

    @property
    def cycles(self) -> int:
        return self.product_cycles + self.other_cycles


def read_program(text: str) -> Program | None:
    """Reads an optimised HLO module; returns None for any other text."""
    computations, entry = _parse(text)
    if not entry:
        return None
    partitions = _PARTITIONS.search(text)
    reader = _Reader(computations, int(partitions[1]) if partitions else 1)
    return dataclasses.replace(reader.read(entry), lines=text.count("\n"))


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the instructions of every computation, and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            entry = current if header[1] else entry
            computations[current] = {}
        elif current and (found := _INSTRUCTION.match(line)):
            root, name, result, operation, rest = found.groups()
            called = {role: _NAME.findall(names) for role, names in _CALLED.findall(rest)}
            instruction = Instruction(name, result, operation, rest, called, bool(root))
            computations[current][name] = instruction
    return computations, entry


class _Place(NamedTuple):
    """The call site of a computation: the known values of its arguments, and its surroundings."""

    arguments: Arguments = ()
    in_loop: bool = False
    in_branch: bool = False


class _Reader:
    def __init__(self, computations: Mapping[str, Computation], partitions: int):
        self.computations = computations
        self.partitions = partitions
        self.multiplies: dict[str, bool] = {}

    def read(self, name: str, place: _Place = _Place()) -> Program:  # noqa: B008 (is immutable)
        """Adds up one run of a computation."""
        return _sum(self._parts(name, place))

    def _parts(self, name: str, place: _Place) -> Iterator[Program]:
        instructions = self.computations[name]
        # The type of a "-start" has buffers besides the result; that of its "-done" does not.
        results = {
            started: each.result
            for each in instructions.values()
            if each.operation.endswith("-done")
            for started in each.operands
        }
        for each in instructions.values():
            kind = each.operation.removesuffix("-start")
            if kind in _RECEIVED:
                # XLA:TPU repeats an asynchronous collective in the fusions that start it, overlap
                # with it and end it; a flag from 0 up marks all but the first.
                if not _ASYNC_PART.search(each.rest):
                    result = results.get(each.name, each.result)
                    yield from self._collective(kind, name, result, each.rest, place)
                continue
            cycles = _CYCLES.search(each.rest)
            if cycles and self._multiplies(each):
                yield Program(product_cycles=int(cycles[1]))
            elif cycles:
                yield Program(other_cycles=int(cycles[1]))
            if each.operation == "while":
                yield self._loop(name, each, place)
            elif each.operation == "conditional":
                inside = place._replace(arguments=(), in_branch=True)
                yield _busiest([self.read(branch, inside) for branch in each.callees])
            elif not each.operation.endswith(("-update", "-done")):
                for callee in each.callees:
                    yield self.read(callee, place._replace(arguments=()))

    def _loop(self, name: str, loop: Instruction, place: _Place) -> Program:
        trips, arguments = count_trips(self.computations, name, loop, place.arguments)
        inside = place._replace(arguments=arguments, in_loop=True)
        once = _sum(self.read(callee, inside) for callee in loop.callees)
        if trips is None:
            return dataclasses.replace(once, uncounted_loops=once.uncounted_loops + 1)
        return dataclasses.replace(
            once,
            collectives=tuple(_repeated(each, trips) for each in once.collectives if trips),
            product_cycles=trips * once.product_cycles,
            other_cycles=trips * once.other_cycles,
        )

    def _collective(
        self, kind: str, computation: str, result: str, rest: str, place: _Place
    ) -> Iterator[Program]:
        group, size = self._group_size(rest), _bytes(result)
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            # XLA:TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
            kind, size = "reduce-scatter", size // group
        if group > 1:
            received = _RECEIVED[kind](size, group)
            yield Program((Collective(kind, group, 1, received, place.in_loop, place.in_branch),))

    def _group_size(self, rest: str) -> int:
        """Reads replica groups in the form of lists, of a count, or of mesh axes."""
        if listed := _GROUP_LISTED.search(rest):
            return len(listed[1].split(","))
        if counted := _GROUP_COUNTED.search(rest):
            return int(counted[1])
        if of_mesh := _GROUP_OF_MESH.search(rest):
            sizes = dict(_MESH_AXIS.findall(of_mesh[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", of_mesh[2]))
        return self.partitions

    def _multiplies(self, instruction: Instruction) -> bool:
        """Returns whether an instruction is a matrix product, or a fusion that contains one."""
        if instruction.operation in _PRODUCTS:
            return True
        for name in instruction.callees:
            if name not in self.multiplies:
                inside = self.computations[name].values()
                self.multiplies[name] = any(map(self._multiplies, inside))
        return any(self.multiplies[name] for name in instruction.callees)


def _sum(parts: Iterator[Program]) -> Program:
    found = list(parts)
    return Program(
        collectives=tuple(each for part in found for each in part.collectives),
        product_cycles=sum(part.product_cycles for part in found),
        other_cycles=sum(part.other_cycles for part in found),
        uncounted_loops=sum(part.uncounted_loops for part in found),
    )


def _busiest(branches: list[Program]) -> Program:
    """Returns the branch with most cycles, with the collectives of all branches."""
    busiest = max(branches, key=lambda branch: branch.cycles)
    return dataclasses.replace(busiest, collectives=_sum(iter(branches)).collectives)


def _repeated(each: Collective, trips: int) -> Collective:
    times, received = trips * each.times, trips * each.received_bytes
    return dataclasses.replace(each, times=times, received_bytes=received)


def _bytes(result: str) -> int:
    """Adds up the arrays of a type; an entry of a type without a bit width counts as one byte."""
    total = 0
    for _, bits, dims in _ARRAY.findall(result):
        entries = math.prod(int(size) for size in dims.split(",") if size)
        total += entries * max(int(bits or 8), 8) // 8
    return total
