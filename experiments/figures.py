"""How the experiments' figures look."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"muon": "#d1495b", "optax-muon": "#e39a3b", "adamw": "#3b6fb6"}
MORE_COLORS = ("#2a7f62", "#7a4fa3", "#8c6d46", "#555555", "#3aa0b5")

Curve = Mapping[str, float]
"""Of a quantity by step, as it was saved."""


def panels(count: int, *, width: float = 4.7, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """Returns a figure, and panels beside each other."""
    figure = Figure(figsize=(width * count, height), dpi=160, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def band(axes: Axes, curves: Sequence[Curve], *, color: str, label: str) -> None:
    """Draws the mean over seeds, and the range of them all as a band around it."""
    steps = list(curves[0])
    values = [[curve[step] for curve in curves] for step in steps]
    at = [int(step) for step in steps]
    low, high = [min(each) for each in values], [max(each) for each in values]
    axes.fill_between(at, low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(at, [statistics.mean(each) for each in values], color=color, label=label)


def rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    """Labels a logarithmic axis with the learning rates that ran, and no others."""
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_xlabel("peak learning rate")
