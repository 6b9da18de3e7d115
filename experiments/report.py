"""Writes the tables and figures of all experiments."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"muon": "#d1495b", "optax-muon": "#e39a3b", "adamw": "#3b6fb6"}
MORE_COLORS = ("#2a7f62", "#7a4fa3", "#8c6d46", "#555555", "#3aa0b5")
LOSS = "held-out loss (nats per byte)"

Curve = Mapping[str, float]
"""A quantity by step, in the format of the results files."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


def listed(values: Iterable[float], form: str = ".4f") -> str:
    """Returns the values, separated by commas, in one cell."""
    return ", ".join(f"{value:{form}}" for value in values)


def mean_and_seeds(values: Sequence[float], form: str = ".4f") -> tuple[str, str]:
    """Returns two cells: the mean over seeds, and the value of each seed."""
    return f"{statistics.mean(values):{form}}", listed(values, form)


def mean_and_range(values: Sequence[float], form: str = ".3g") -> str:
    """Returns the mean, the smallest and the largest value, in one cell."""
    mean, low, high = statistics.mean(values), min(values), max(values)
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def panels(count: int, *, width: float = 4.7, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its panels, side by side; sizes are those of a panel in inches."""
    figure = Figure(figsize=(width * count, height), dpi=160, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_curves(
    axes: Axes,
    arms: Mapping[str, tuple[str, Sequence[Curve]]],
    *,
    legend: bool = True,
    **labels: Any,
) -> None:
    """Draws the mean over seeds of each arm by step, and the range of its seeds as a band.

    Args:
        arms: the color of each arm and its curves, by the name in the legend.
        labels: properties of the axes, such as `title`.
    """
    for name, (color, curves) in arms.items():
        steps = [int(step) for step in curves[0]]
        values = [[curve[step] for curve in curves] for step in curves[0]]
        low, high = [min(each) for each in values], [max(each) for each in values]
        axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
        axes.plot(steps, [statistics.mean(each) for each in values], color=color, label=name)
    axes.set(xlabel="step", **labels)
    if legend:
        axes.legend(frameon=False)


def draw_sweep(
    axes: Axes,
    arms: Mapping[str, tuple[Any, Mapping[float, float]]],
    *,
    ticks: Sequence[float] = (),
    base: float = 10,
    legend: bool = True,
    **labels: Any,
) -> None:
    """Draws the result of each arm by learning rate, on a logarithmic axis.

    Args:
        arms: the color of each arm and its results by rate, by the name in the legend.
        ticks: the learning rates to label; if empty, Matplotlib chooses the ticks.
        base: the base of the logarithmic axis.
        labels: properties of the axes, such as `title`.
    """
    for name, (color, results) in arms.items():
        axes.plot(list(results), list(results.values()), "o-", color=color, label=name)
    axes.set_xscale("log", base=base)
    if ticks:
        axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
        axes.minorticks_off()
    axes.set(**{"xlabel": "peak learning rate", **labels})
    if legend:
        axes.legend(frameon=False)
