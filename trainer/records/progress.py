"""Progress for people: a live bar on a terminal, plain lines elsewhere, nothing when quiet."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_LINES = 20  # over a whole run; more where that would leave too many steps in silence
PLAIN_SILENCE = 100


class TrainingProgress:
    """Shows step, loss, speed and time left of a run."""

    def __init__(self, start: int, steps: int, unit: str, *, quiet: bool) -> None:
        self.console = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self._steps, self._unit = steps, unit
        self._plain_every = min(max(1, steps // PLAIN_LINES), PLAIN_SILENCE)
        self._first: tuple[int, float] | None = None
        self._speed = 0.0
        columns = (
            TextColumn("step {task.completed:>5.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True, expand=True)
        self._task = self._bar.add_task("", total=steps, completed=start, shown="compiling …")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def say(self, line: str, style: str | None = None) -> None:
        self.console.print(line, style=style)

    def trained(self, step: int, loss: float, per_second: float) -> None:
        """Shows one finished step."""
        if self._first is None:  # its time was compilation
            self._first = step, time.monotonic()
            speed = ""
        else:
            first, began = self._first
            keep = 0.9 if step > first + 1 else 0.0
            self._speed = keep * self._speed + (1 - keep) * per_second
            left = (time.monotonic() - began) / (step - first) * (self._steps - step)
            speed = f"  {self._speed:,.0f} {self._unit}/s  {_clock(left)} left"
        shown = f"loss {loss:.3f}{speed}"
        if self.console.is_terminal:
            self._bar.update(self._task, completed=step, shown=shown)
        elif step % self._plain_every == 0 or step == self._steps:
            self.console.print(f"step {step:>5}/{self._steps}  {shown}")

    def evaluated(self, step: int, loss: float) -> None:
        """Shows a held-out loss, on a line that stays."""
        self.console.print(f"step {step:>5}/{self._steps}  held-out loss {loss:.4f}", style="bold")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
