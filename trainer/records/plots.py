"""The loss curve of a run."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure  # without pyplot: no display, no global state

TRAIN, HELD_OUT, QUIET = "#3b6fb6", "#d1495b", "#555555"
SMOOTHING = 0.02  # of the run's length, on either side of a step
SHOWN_FROM = 0.06  # of the run's length: the first fall would flatten all that follows


def plot_loss(
    file: Path,
    train: Mapping[int, float],
    held_out: Mapping[int, float],
    *,
    title: str,
    settings: str,
    unit: str,
) -> None:
    """Draws the training loss of each step and its running mean, and the held-out loss.

    Args:
        unit: what the loss counts, "nats per …"; a second axis shows it in bits.
    """
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    steps, losses = np.array(list(train)), np.array(list(train.values()))
    smooth = _running_mean(losses, round(SMOOTHING * len(losses)))
    axes.plot(steps, losses, color=TRAIN, alpha=0.3, linewidth=0.7)
    axes.plot(steps, smooth, color=TRAIN, linewidth=1.8, label="training, running mean")
    if held_out:
        at, values = zip(*held_out.items(), strict=True)
        axes.plot(at, values, "o-", color=HELD_OUT, markersize=4, linewidth=1.3, label="held out")
        axes.annotate(
            f"{values[-1]:.3f}",
            (at[-1], values[-1]),
            xytext=(4, -16),
            textcoords="offset points",
            ha="right",
            color=HELD_OUT,
            fontweight="bold",
        )
    shown = [*losses[int(SHOWN_FROM * len(losses)) :], *held_out.values()]
    margin = 0.06 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlim(0, steps[-1] * 1.03)
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss ({unit})")
    bit = math.log(2)
    bits = axes.secondary_yaxis(
        "right", functions=(lambda x: np.asarray(x) / bit, lambda x: np.asarray(x) * bit)
    )
    bits.set_ylabel(unit.replace("nats", "bits"))
    for edge in (*axes.spines.values(), *bits.spines.values()):
        edge.set_color("#bbbbbb")
    axes.spines["top"].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", pad=22, fontsize=13, fontweight="bold")
    axes.text(0, 1.025, settings, transform=axes.transAxes, fontsize=9, color=QUIET)
    axes.legend(frameon=False)
    figure.savefig(file)


def _running_mean(values: Float[np.ndarray, "steps"], reach: int) -> Float[np.ndarray, "steps"]:
    """Averages each value with those up to `reach` steps away, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - reach), np.minimum(len(values), index + reach + 1)
    return (sums[high] - sums[low]) / (high - low)


def plot_accuracy(
    file: Path, accuracy: Mapping[float, float], *, target: float, title: str
) -> None:
    """Draws the held-out accuracy by epoch, and the one that was aimed at."""
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axhline(target, color=QUIET, linewidth=0.9, linestyle="--", label=f"target {target:g}")
    axes.plot(list(accuracy), list(accuracy.values()), "o-", color=HELD_OUT, markersize=4)
    axes.set(xlabel="epoch", ylabel="held-out accuracy", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file)
