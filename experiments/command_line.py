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
    """Offers `run`, which measures what is not saved, and `report`, which prints tables and draws.

    Args:
        plan: a dataclass of all that may be chosen.
        figures: what draws each figure, by its name in docs/images.
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
