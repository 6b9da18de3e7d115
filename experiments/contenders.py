"""The optimizers to compare; each has its own learning rates, the same number for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.report import table

TIMES = 3  # factor between one learning rate and the next


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
    """Tabulates the results of each optimizer from its lowest to its highest learning rate."""
    factors = [f"× {TIMES**power}" for power in range(max(map(len, cells.values())))]
    return table(
        (title, "lowest rate", *factors),
        [
            (contender.name, f"{contender.lowest_rate:g}", *cells[key])
            for key, contender in contenders.items()
        ],
    )
