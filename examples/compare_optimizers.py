"""Compares eight optimizers on a small language model, each at its own best learning rate.

python examples/compare_optimizers.py --workers 2      # some ten minutes; trials once done are kept

python examples/compare_optimizers.py --data texts/ --width 128 --layers 4 --steps 1000

It prints a table and draws a figure: the experiment in experiments/optimizer_sweep.py, made small.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiments"))

import tyro
from common.errors import run_command
from optimizer_sweep import Plan, draw, report, run

SMALL = Plan(
    steps=150, rates=3, seeds=(0, 1), width=32, results=Path("runs/compare_optimizers.jsonl")
)


def compare(plan: Plan) -> Path:
    """Runs what is not saved, prints the tables, and returns where the figure lies."""
    run(plan)
    print(report(plan))
    figure = plan.results.with_suffix(".png")
    draw(plan).savefig(figure)
    return figure


def main() -> None:
    print(compare(tyro.cli(tyro.conf.OmitArgPrefixes[Plan], default=SMALL, description=__doc__)))


if __name__ == "__main__":
    run_command(main)
