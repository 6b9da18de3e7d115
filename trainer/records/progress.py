"""Progress for people: a live bar on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn

PLAIN_LINES = 20  # over a whole run; more if they would be too many steps apart
PLAIN_SILENCE = 100  # most steps between two lines


class Progress(Protocol):
    """What a run reports while it trains."""

    def begin(self, start: int, title: str, about: Sequence[str]) -> None:
        """Takes the steps already done, and lines that describe the run."""

    def trained(self, step: int, loss: float, per_second: float) -> None:
        """Takes one finished step, and the items trained on in a second."""

    def evaluated(self, step: int, loss: float) -> None:
        """Takes a held-out loss."""


class Display:
    """A console with one bar for all steps; without a terminal, it prints lines instead."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        self.console = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self._steps = steps
        self._plain_every = min(max(1, steps // PLAIN_LINES), PLAIN_SILENCE)
        columns = (
            TextColumn("step {task.completed:>5.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
        )
        self._bar = rich.progress.Progress(
            *columns, console=self.console, transient=True, expand=True
        )
        self._task = self._bar.add_task("", total=steps, shown="compiling …")
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def start(self, step: int) -> None:
        """Starts the bar at a step."""
        self._bar.update(self._task, completed=step)
        if self.console.is_terminal:
            self._bar.start()

    def show(self, step: int, shown: str) -> None:
        """Moves the bar to a step."""
        if self.console.is_terminal:
            self._bar.update(self._task, completed=step, shown=shown)
        elif step % self._plain_every == 0 or step == self._steps:
            self.show_line(step, shown)

    def show_line(self, step: int, shown: str, style: str | None = None) -> None:
        """Prints a line that stays."""
        self.console.print(f"step {step:>5}/{self._steps}  {shown}", style=style)

    def time_left(self, step: int) -> str:
        """Estimates the time left from the time of all steps after the first."""
        if self._first is None or step <= self._first[0]:  # the first one compiles
            self._first = step, time.monotonic()
            return ""
        first, began = self._first
        left = (time.monotonic() - began) / (step - first) * (self._steps - step)
        return f"{_clock(left)} left"


class TrainingProgress(Display):
    """Shows step, loss, speed and time left of one run."""

    def __init__(self, steps: int, unit: str, *, quiet: bool) -> None:
        super().__init__(steps, quiet=quiet)
        self._unit, self._speed = unit, 0.0

    def begin(self, start: int, title: str, about: Sequence[str]) -> None:
        self.start(start)
        self.console.print(title, style="bold")
        self.console.print("\n".join(about))

    def trained(self, step: int, loss: float, per_second: float) -> None:
        if left := self.time_left(step):
            keep = 0.9 if self._speed else 0.0
            self._speed = keep * self._speed + (1 - keep) * per_second
            left = f"  {self._speed:,.0f} {self._unit}/s  {left}"
        self.show(step, f"loss {loss:.3f}{left}")

    def evaluated(self, step: int, loss: float) -> None:
        self.show_line(step, f"held-out loss {loss:.4f}", style="bold")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
