"""One progress display for several runs that take turns."""

from collections.abc import Sequence

from trainer.records.progress import Display


class SideBySide(Display):
    """Shows the losses of all runs on one line, once each of them has done the step."""

    def __init__(self, names: Sequence[str], steps: int, *, quiet: bool) -> None:
        super().__init__(steps, quiet=quiet)
        self.runs = {name: _Run(name, self) for name in names}

    def show_trained(self, step: int) -> None:
        """Moves the bar if every run has done the step."""
        if all(run.step >= step for run in self.runs.values()):
            left = self.time_left(step)
            losses = "   ".join(f"{name} {run.loss:.3f}" for name, run in self.runs.items())
            self.show(step, f"loss: {losses}   {left}".rstrip())

    def show_held_out(self, step: int) -> None:
        """Prints the held-out losses if every run has measured one after the step."""
        losses = [run.held_out.get(step) for run in self.runs.values()]
        if None not in losses:
            pairs = zip(self.runs, losses, strict=True)
            shown = "   ".join(f"{name} {loss:.4f}" for name, loss in pairs)
            self.show_line(step, f"held-out loss: {shown}", style="bold")


class _Run:
    """What one run reports, as `Progress`."""

    def __init__(self, name: str, display: SideBySide) -> None:
        self._name, self._display = name, display
        self.step, self.loss = 0, float("nan")
        self.held_out: dict[int, float] = {}

    def begin(self, start: int, title: str, about: Sequence[str]) -> None:
        del title
        self._display.console.print(f"{self._name}: {about[0]}")
        self._display.start(start)

    def trained(self, step: int, loss: float, per_second: float) -> None:
        del per_second  # it includes the time of the other runs
        self.step, self.loss = step, loss
        self._display.show_trained(step)

    def evaluated(self, step: int, loss: float) -> None:
        self.held_out[step] = loss
        self._display.show_held_out(step)
