"""The command line of every experiment, and where results and figures are kept."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tyro
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
IMAGES = ROOT / "docs" / "images"

Plan = TypeVar("Plan")


def main(
    plan: type[Plan],
    description: str | None,
    *,
    run: Callable[[Plan], None],
    report: Callable[[Plan], str],
    figures: Mapping[str, Callable[[Plan], Figure]] | None = None,
) -> None:
    """Parses the command line and calls `run` or `report`.

    `run` measures the trials that are not saved; `report` prints the tables, then draws `figures`.

    Args:
        plan: the dataclass of the settings.
        figures: the functions that draw the figures, by file name in docs/images.
    """

    def measure(settings: Plan) -> None:
        run(settings)

    def show(settings: Plan) -> None:
        print(report(settings))
        IMAGES.mkdir(parents=True, exist_ok=True)
        for name, draw in (figures or {}).items():
            draw(settings).savefig(IMAGES / name)

    commands = {"run": measure, "report": show}
    for command in commands.values():
        command.__annotations__["settings"] = tyro.conf.OmitArgPrefixes[plan]
    tyro.extras.subcommand_cli_from_dict(commands, description=description)
