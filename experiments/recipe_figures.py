"""Figures of the comparison of recipes: final losses by seed, and how the best peak transfers."""

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report import COLORS, LOSS, MORE_COLORS, draw_sweep, panels
from experiments.trials import Measured

Trial = Any  # a RecipeTrial; importing its module here would be circular

_DEFAULT = {"optimizer": "muon-outputs-heads-momentum-0.9", "weight_decay": 0.25}
_STRONGEST = {"optimizer": "muon-heads-whole", "precondition": "soap_short"}
_OPTAX = {"optimizer": "optax-own-scale", "weight_decay": 0.1}
SHOWN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "AdamW, one rate": (COLORS["adamw"], {"optimizer": "adamw", "input": 1.0}),
    "AdamW, two rates": (COLORS["adamw"], {"optimizer": "adamw", "input": (10.0, 30.0, 100.0)}),
    "optax.contrib.muon, one rate": (COLORS["optax-muon"], {**_OPTAX, "input": 1.0}),
    "optax.contrib.muon, two rates": (COLORS["optax-muon"], {**_OPTAX, "input": (2.0, 4.0, 10.0)}),
    "muon_jax.muon": (COLORS["muon"], {**_DEFAULT, "precondition": "none"}),
    "recipes.best": (COLORS["muon"], {**_DEFAULT, "precondition": "second_moment"}),
    "recipes.strongest": (COLORS["muon"], {**_DEFAULT, **_STRONGEST}),
}
"""Color and settings of each row of the figure.

If the settings allow several peaks or several factors, the figure shows the best one on seed 0.
"""

SETTINGS = {"8 × 128 bytes, 400 steps": (8, 400, 1.7), "32 × 128 bytes, 720 steps": (32, 720, 1.2)}
"""Batch size, steps, and the largest loss in the figure."""

SCALES: Mapping[str, Mapping[str, Any]] = {
    "spectral": {"optimizer": "muon-spectral"},
    "0.2·√outputs, the default": _DEFAULT | {"precondition": "none"},
    "match_rms": {"optimizer": "muon-match_rms-momentum-0.9"},
}


def by_seed(saved: Mapping[Trial, Measured], **wanted: Any) -> dict[int, float]:
    """Returns the losses by seed of trials with these settings, at the best peak of seed 0."""
    found: dict[tuple[float, float], dict[int, float]] = {}
    for trial, measured in saved.items():
        if _fits(trial, wanted) and measured["loss"] is not None:
            arm = (trial.learning_rate, trial.input)
            found.setdefault(arm, {})[trial.seed] = measured["loss"]
    return dict(sorted(min(found.values(), key=lambda losses: losses.get(0, float("inf"))).items()))


def _fits(trial: Trial, wanted: Mapping[str, Any]) -> bool:
    values = {
        name: value if isinstance(value, tuple) else (value,) for name, value in wanted.items()
    }
    return all(getattr(trial, name) in allowed for name, allowed in values.items())


def draw_losses(saved: Mapping[Trial, Measured]) -> Figure:
    """Draws the held-out loss of each optimizer, a dot for each seed, in two settings."""
    figure, axes = panels(2, width=5.2, height=3.2)
    for panel, (title, (batch, steps, most)) in zip(axes, SETTINGS.items(), strict=True):
        setting = {"task": "language", "width": 128, "batch_size": batch, "steps": steps}
        for row, (color, wanted) in enumerate(SHOWN.values()):
            losses = list(by_seed(saved, **setting, **wanted).values())
            _draw_row(panel, -row, losses, color, most)
        panel.set(title=title, xlabel=LOSS)
        panel.set_yticks(
            [-row for row in range(len(SHOWN))], list(SHOWN) if panel is axes[0] else []
        )
        panel.margins(x=0.12)
    return figure


def _draw_row(axes: Axes, row: int, losses: list[float], color: str, most: float) -> None:
    mean = statistics.mean(losses)
    shown = [min(loss, most) for loss in losses]
    axes.plot(shown, [row] * len(shown), ">" if mean > most else "o", color=color, alpha=0.7)
    axes.annotate(
        f"{mean:.3f}",
        (max(shown), row),
        (7, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def draw_transfer(saved: Mapping[Trial, Measured]) -> Figure:
    """Draws the loss by peak learning rate at several widths, a panel for each scale."""
    figure, axes = panels(len(SCALES), height=3.4)
    for panel, (title, losses) in zip(axes, transfer(saved).items(), strict=True):
        colors = dict(zip(losses, MORE_COLORS, strict=False))
        draw_sweep(
            panel,
            {f"width {width}": (colors[width], by_peak) for width, by_peak in losses.items()},
            base=2,
            ticks=sorted({peak for by_peak in losses.values() for peak in by_peak}),
            title=title,
            ylabel=LOSS,
        )
    return figure


def transfer(saved: Mapping[Trial, Measured]) -> dict[str, dict[int, dict[float, float]]]:
    """Returns the losses of seed 0 at 8 × 128 by scale, width and peak."""
    found: dict[str, dict[int, dict[float, float]]] = {}
    for title, wanted in SCALES.items():
        setting = {"task": "language", "seed": 0, "batch_size": 8, "steps": 400, **wanted}
        rows = [
            (t.width, t.learning_rate, m["loss"]) for t, m in saved.items() if _fits(t, setting)
        ]
        by_width = found.setdefault(title, {})
        for width, peak, loss in sorted(row for row in rows if row[2] is not None):
            by_width.setdefault(width, {})[peak] = loss
    return found
