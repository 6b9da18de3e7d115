"""What a process holds while a tiny model trains for thousands of steps.

python benchmarks/soak.py
python benchmarks/soak.py --thousands 100
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from measuring import conditions, table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from soaking import soak


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
