"""Plots how a run's experts shared the tokens, from the metrics that the run logged."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trainer.records.metrics import read_layers
from trainer.records.run_folder import RunFolder

PANEL = 3.4  # inches


def plot_load(file: Path, folder: RunFolder) -> None:
    """Draws one panel for each layer, one line for each expert, and the equal share."""
    layers = read_layers(folder, "train/load")
    figure = Figure(figsize=(max(2, len(layers)) * PANEL, PANEL), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, (layer, load) in zip(panels, layers.items(), strict=True):
        axes.plot(np.arange(1, len(load) + 1), load, linewidth=0.9)
        axes.axhline(1 / load.shape[1], color="#555555", linewidth=0.9, linestyle="--")
        axes.set_title(layer, fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("part of the choices")
    figure.savefig(file)
