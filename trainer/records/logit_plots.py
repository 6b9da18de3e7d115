"""Plots the largest attention logits of runs, by layer and head, from their logged metrics."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from trainer.errors import UsageError
from trainer.records.metrics import read_layers
from trainer.records.run_folder import RunFolder

PANEL = 2.6  # inches


def plot_max_logits(file: Path, folders: Sequence[RunFolder]) -> None:
    """Draws one row of panels for each run, one panel for each layer, one line for each head."""
    if not folders:
        raise UsageError("name at least one folder that `python -m trainer mla` wrote")
    runs = [(folder.read_settings(), _logged(folder)) for folder in folders]
    columns = max(len(layers) for _, layers in runs)
    size = (max(2, columns) * PANEL, len(runs) * PANEL)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(len(runs), columns, sharex=True, sharey=True, squeeze=False)
    for row, (settings, layers) in zip(panels, runs, strict=True):
        threshold = settings["threshold"]
        clipped = "Muon alone" if threshold is None else f"MuonClip, threshold {threshold:g}"
        row[0].set_ylabel(f"largest logit\n{clipped}")
        for axes, (layer, heads) in zip(row, layers.items(), strict=False):
            axes.plot(np.arange(1, len(heads) + 1), heads, linewidth=0.9)
            if threshold is not None:
                axes.axhline(threshold, color="#555555", linewidth=0.9, linestyle="--")
            axes.set_title(layer, fontsize=9)
            axes.set_yscale("log")
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    figure.savefig(file)


def _logged(folder: RunFolder) -> dict[str, Float[np.ndarray, "steps heads"]]:
    """Reads the largest logits of each layer and head."""
    layers = read_layers(folder, "train/max_logits")
    if not layers:
        raise UsageError(
            f"{folder.path} has logged no largest logits; train it with `python -m trainer mla`"
        )
    return layers
