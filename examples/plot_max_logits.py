"""Draws the largest attention logits of finished runs of train_mla.py below each other.

python examples/plot_max_logits.py runs/without runs/with --out max_logits.png
"""

from pathlib import Path
from typing import Annotated

import tyro
from common.errors import run_command
from common.logit_plots import plot_max_logits
from common.run_folder import RunFolder


def draw(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path) -> None:
    """Draws one row of panels for each run.

    Args:
        runs: folders that train_mla.py has written.
        out: the image to write.
    """
    plot_max_logits(out, [RunFolder(run) for run in runs])
    print(out)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(draw, description=__doc__))
