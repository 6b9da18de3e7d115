"""Measures the memory of a process while a tiny model trains for thousands of steps.

python -m benchmarks.soak
python -m benchmarks.soak --thousands 100
"""

from dataclasses import dataclass

import tyro

from benchmarks.measuring import conditions, table
from benchmarks.soaking import soak


@dataclass(frozen=True)
class Options:
    """How long to train."""

    thousands: int = 10
    """Thousands of steps."""


def main(options: Options) -> None:
    rows = [
        (
            f"{row.steps:,}",
            f"{row.python / 2**10:.1f} KiB",
            f"{row.live / 2**10:.1f} KiB",
            row.arrays,
            f"{row.resident / 2**20:.1f} MiB",
            *(
                f"{speed:.0f}" if row.steps else ""
                for speed in (row.per_second, row.per_cpu_second)
            ),
        )
        for row in soak(options.thousands)
    ]
    print(f"A tiny model under `muon`, one compiled step. {conditions()}\n")
    header = ("steps", "Python", "live arrays", "count", "resident", "steps/s", "steps/CPU s")
    print(table(header, rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
