"""Optimizers that are set against each other, each with as many learning rates of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIMES = 3  # from one rate to the next


@dataclass(frozen=True)
class Contender:
    """An optimizer, the lowest of its rates, and the color of its curves."""

    name: str
    lowest_rate: float
    color: str

    def rates(self, count: int) -> list[float]:
        return [float(f"{self.lowest_rate * TIMES**power:.2g}") for power in range(count)]


def sweep_table(
    title: str, contenders: Mapping[str, Contender], cells: Mapping[str, Sequence[str]]
) -> str:
    """Writes what each measured at its rates, from the lowest to the highest."""
    count = max(map(len, cells.values()))
    factors = " | ".join(f"× {TIMES**power}" for power in range(count))
    rows = [f"| {title} | lowest rate | {factors} |", "|---" * (2 + count) + "|"]
    for key, contender in contenders.items():
        rows.append(f"| {contender.name} | {contender.lowest_rate:g} | {' | '.join(cells[key])} |")
    return "\n".join(rows)
