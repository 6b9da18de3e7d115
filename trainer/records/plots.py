"""Charts of runs: the loss of one, the losses of several, the accuracy by epoch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from trainer.records.charts import Curve, draw_chart

BLUE, RED, GREY = "#3b6fb6", "#d1495b", "#999999"
FAINT = {BLUE: "#c4d4e9", RED: "#f1c8ce"}
SMOOTHING = 0.02  # of the run's length, on either side of a step
SHOWN_FROM = 0.06  # of the run's length; the steep start would flatten the rest of the curve

Series = Mapping[int, float]


def plot_loss(
    file: Path, train: Series, held_out: Series, *, title: str, settings: str, unit: str
) -> None:
    """Draws the training loss of each step and its running mean, and the held-out loss.

    Args:
        unit: unit of the loss, "nats per …".
    """
    curves = [
        Curve(train, FAINT[BLUE], width=1.0),
        Curve(_running_mean(train), BLUE, "training, running mean"),
    ]
    if held_out:
        curves.append(Curve(held_out, RED, "held out", width=2.5, dots=True))
    shown = [*_later(train), *held_out.values()]
    draw_chart(
        file,
        curves,
        title=title,
        subtitle=settings,
        x="step",
        y=f"loss ({unit})",
        y_range=(min(shown), max(shown)),
    )


def plot_losses(
    file: Path, runs: Mapping[str, tuple[Series, Series]], *, title: str, settings: str, unit: str
) -> None:
    """Draws the training loss and the held-out loss of two runs.

    Args:
        runs: by name, a training loss and a held-out loss, each by step.
        unit: unit of the losses, "nats per …".
    """
    colours = dict(zip(runs, (BLUE, RED), strict=True))
    faint = [Curve(train, FAINT[colours[name]], width=1.0) for name, (train, _) in runs.items()]
    curves = [
        Curve(held_out, colours[name], f"{name}, held out", dots=True)
        for name, (_, held_out) in runs.items()
    ]
    shown = [
        value for train, held_out in runs.values() for value in (*_later(train), *held_out.values())
    ]
    draw_chart(
        file,
        [*faint, *curves],
        title=title,
        subtitle=settings,
        x="step",
        y=f"loss ({unit}); faint: each training batch",
        y_range=(min(shown), max(shown)),
    )


def plot_accuracy(
    file: Path, accuracy: Mapping[float, float], *, target: float, title: str
) -> None:
    """Draws the held-out accuracy by epoch, and the target accuracy."""
    aim = Curve({0: target, max(accuracy): target}, GREY, f"target {target:g}", width=1.5)
    values = [*accuracy.values(), target]
    draw_chart(
        file,
        [aim, Curve(accuracy, RED, "held out", dots=True)],
        title=title,
        x="epoch",
        y="held-out accuracy",
        y_range=(min(values), max(values)),
    )


def _later(values: Series) -> list[float]:
    """Returns the values after the steep start."""
    return list(values.values())[int(SHOWN_FROM * len(values)) :]


def _running_mean(values: Series) -> Series:
    """Averages each value with its neighbours, fewer of them at the ends."""
    reach = round(SMOOTHING * len(values))
    sums: Float[np.ndarray, "steps+1"] = np.concatenate([[0.0], np.cumsum(list(values.values()))])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - reach), np.minimum(len(values), index + reach + 1)
    return dict(zip(values, ((sums[high] - sums[low]) / (high - low)).tolist(), strict=True))
