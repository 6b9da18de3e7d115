"""Draws the largest attention logits of finished runs of `python -m trainer mla`.

python -m trainer plot-max-logits runs/without runs/with --out max_logits.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from trainer.records.logit_plots import plot_max_logits
from trainer.records.run_folder import RunFolder


def draw(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path) -> None:
    """Draws one row of panels for each run.

    Args:
        runs: folders that `python -m trainer mla` wrote.
        out: the image to write.
    """
    plot_max_logits(out, [RunFolder(run) for run in runs])
    print(out)


def main(arguments: Sequence[str]) -> None:
    tyro.cli(draw, prog="python -m trainer plot-max-logits", description=__doc__, args=arguments)
