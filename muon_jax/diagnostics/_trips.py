"""Counts the trips of a loop from the start, step and limit of its counter.

XLA:CPU and XLA:GPU write the trip count of a loop; XLA:TPU does not.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.\-]+)")
_INTEGER = re.compile(r"-?\d+(?=\))")
_INDEX = re.compile(r"\bindex=(\d+)")
_DIRECTION = re.compile(r"\bdirection=(\w+)")
_COUNTS = re.compile(r"\(|[su]\d+\[\]|pred\[\]")
"""Types of tuples, integers and comparisons."""
_SAME = ("bitcast", "convert", "copy", "copy-done", "copy-start", "reshape")
"""Operations that return the value of their operand."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO, `name = result operation(rest`, and the computations that it calls."""

    name: str
    result: str
    operation: str
    rest: str
    called: Mapping[str, list[str]]
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return _NAME.findall(self.rest.split(")", 1)[0])

    @property
    def callees(self) -> list[str]:
        return [name for names in self.called.values() for name in names]


Computation: TypeAlias = dict[str, Instruction]


class Sum(NamedTuple):
    """A number, or a number plus an element of the loop state."""

    number: int
    element: int | None = None


class Comparison(NamedTuple):
    direction: str
    left: Sum
    right: Sum


Value: TypeAlias = "Sum | Comparison | list[Value] | None"
"""The value of a scalar, of a comparison, or of each element of a tuple; None is unknown."""

Arguments: TypeAlias = Sequence[Value]


def count_trips(
    computations: Mapping[str, Computation], caller: str, loop: Instruction, arguments: Arguments
) -> tuple[int | None, Arguments]:
    """Returns the trip count of a loop, None if unknown, and the values of its body's arguments.

    Args:
      computations: of the whole program, by name.
      caller: the name of the computation that contains the loop.
      loop: the `while`.
      arguments: of the caller.
    """
    (body,), (condition,) = loop.called["body"], loop.called["condition"]
    named = _KNOWN.search(loop.rest)
    known = int(named[1]) if named else None
    start = _Call(computations, caller, arguments).value(loop.operands[0])
    if not isinstance(start, list):
        return known, []
    state: list[Value] = [Sum(0, element) for element in range(len(start))]
    following = _Call(computations, body, [state]).result()
    if not isinstance(following, list):
        return known, []
    inside = [
        value if before == after else None
        for value, before, after in zip(start, state, following, strict=True)
    ]
    if known is None:
        end = _Call(computations, condition, [state]).result()
        known = _trips(end, start, following, inside)
    return known, [inside]


def _trips(end: Value, start: Arguments, following: Arguments, inside: Arguments) -> int | None:
    """Returns the number of steps of a counter until `counter + ahead < limit` fails."""
    match end:
        case Comparison("LT", Sum(ahead, int(counter)), limit):
            if limit.element is not None:
                limit = _add(inside[limit.element], Sum(limit.number))
            match start[counter], following[counter], limit:
                case Sum(first, None), Sum(step, element), Sum(last, None):
                    if element == counter and step > 0:
                        return max(0, -(-(last - ahead - first) // step))
    return None


class _Call:
    """Evaluates the integer arithmetic of counters in one computation."""

    def __init__(
        self, computations: Mapping[str, Computation], name: str, arguments: Arguments
    ) -> None:
        self.computations = computations
        self.instructions = computations[name]
        self.arguments = arguments
        self.known: dict[str, Value] = {}

    def result(self) -> Value:
        return self.value(
            next((name for name, each in self.instructions.items() if each.is_root), "")
        )

    def value(self, name: str) -> Value:
        if name not in self.known:
            each = self.instructions.get(name)
            # Arrays are no counters, and may depend on much of the program.
            counts = each is not None and _COUNTS.match(each.result)
            self.known[name] = self._evaluate(each) if each and counts else None
        return self.known[name]

    def _evaluate(self, each: Instruction) -> Value:
        value = None
        match each.operation:
            case "constant":
                number = _INTEGER.match(each.rest)
                value = Sum(int(number[0])) if number else None
            case "parameter":
                position = int(each.rest.split(")", 1)[0])
                value = self.arguments[position] if position < len(self.arguments) else None
            case "tuple":
                value = self._operands(each)
            case "get-tuple-element":
                (whole,) = self._operands(each)
                index = int(_INDEX.findall(each.rest)[0])
                value = whole[index] if isinstance(whole, list) else None
            case "compare":
                match self._operands(each):
                    case [Sum() as left, Sum() as right]:
                        value = Comparison(_DIRECTION.findall(each.rest)[0], left, right)
            case "fusion":
                (callee,) = each.callees
                value = _Call(self.computations, callee, self._operands(each)).result()
            case "add":
                value = _add(*self._operands(each))
            case operation if operation in _SAME:
                value = self._operands(each)[0]
        return value

    def _operands(self, each: Instruction) -> list[Value]:
        return [self.value(name) for name in each.operands]


def _add(left: Value, right: Value) -> Sum | None:
    """Adds two numbers, of which at most one depends on the loop state."""
    match left, right:
        case (Sum(a, element), Sum(b, None)) | (Sum(a, None), Sum(b, element)):
            return Sum(a + b, element)
    return None
