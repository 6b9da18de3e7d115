"""Compares eight optimizers on a small language model, each at its own best learning rate.

python -m experiments.compare_optimizers --workers 2  # about ten minutes; skips saved trials
python -m experiments.compare_optimizers --data texts/ --width 128 --layers 4 --steps 1000

It prints tables and draws a figure. It is `experiments.optimizer_sweep` with smaller settings.
"""

from pathlib import Path

import tyro

from experiments.optimizer_sweep import Plan, draw, report, run
from trainer.errors import run_command

SMALL = Plan(
    steps=150, rates=3, seeds=(0, 1), width=32, results=Path("runs/compare_optimizers.jsonl")
)


def compare(plan: Plan) -> Path:
    """Runs the trials that are not saved, prints the tables and returns the path of the figure."""
    run(plan)
    print(report(plan))
    figure = plan.results.with_suffix(".png")
    draw(plan).savefig(figure)
    return figure


def main() -> None:
    print(compare(tyro.cli(tyro.conf.OmitArgPrefixes[Plan], default=SMALL, description=__doc__)))


if __name__ == "__main__":
    run_command(main)
