"""Draws docs/images/sharding.png: where the shards of two layers go on four devices, and back.

python docs/draw_sharding.py

The library's own plan says who owns which matrix.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve

import muon_jax
from muon_jax.mesh._slots import plan_slots

DEVICES, LAYERS, WIDTH = 4, 2, 256
SHAPES = {"qkv": (1, 3), "out": (1, 1), "up": (1, 2), "down": (2, 1)}
COLORS = {"qkv": "#3b6fb6", "out": "#7a9e3f", "up": "#d1495b", "down": "#e0a030"}
INK, PALE, GROUND = "#333333", "#8a8f98", "#f3f4f6"
BESIDE = {"qkv": 0.12, "out": -0.12, "up": 0.12, "down": -0.12}
"""How far above the middle the threads of a kind run, so that none hides another."""

LANE, GAP = 2.6, 0.25  # the height of a device, and the space between matrices, in matrix widths
LEFT, MIDDLE, RIGHT = 0.0, 13.2, 22.8  # where the panels begin
SHARDS_WIDE, OWNER_WIDE = 8.3, 4.7

Name = tuple[int, str]
Point = tuple[float, float]


def owners() -> dict[Name, int]:
    """Returns the owner of every matrix by the library's plan."""
    cost = muon_jax.newton_schulz("keller", form="direct").flops
    costs = [cost(WIDTH * rows, WIDTH * cols) for rows, cols in SHAPES.values()]
    planned = plan_slots([LAYERS] * len(SHAPES), costs, DEVICES)
    found = {}
    for kind, slots in zip(SHAPES, planned, strict=True):
        taken = [device for device, count in enumerate(slots.counts) for _ in range(count)]
        found |= {(layer, kind): device for layer, device in enumerate(taken)}
    return found


def middle_of(device: int) -> float:
    return -LANE * (device + 0.5)


def box(axes: Axes, left: float, device: int, width: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, middle_of(device) - LANE / 2 + 0.2),
            width,
            LANE - 0.4,
            boxstyle="round,pad=0,rounding_size=0.18",
            facecolor=GROUND,
            edgecolor="none",
        )
    )


def block(axes: Axes, place: Point, size: Point, kind: str, solved: bool) -> None:
    """A momentum is pale, a result full."""
    axes.add_patch(
        Rectangle(
            place,
            *size,
            facecolor=COLORS[kind] if solved else COLORS[kind] + "55",
            edgecolor=COLORS[kind],
            linewidth=0.9,
            zorder=3,
        )
    )


def draw_shards(axes: Axes, left: float, solved: bool) -> dict[tuple[Name, int], float]:
    """Every device holds a strip of every matrix; returns where its thread begins."""
    heights = {}
    for device in range(DEVICES):
        box(axes, left, device, SHARDS_WIDE)
        for layer in range(LAYERS):
            x = left + 0.3
            y = middle_of(device) + (0.5 - layer) * 0.95
            for kind, (rows, cols) in SHAPES.items():
                height = rows / DEVICES
                block(axes, (x, y - height / 2), (cols, height), kind, solved)
                x += cols + GAP
                heights[(layer, kind), device] = y + BESIDE[kind]
    return heights


def draw_owners(axes: Axes, owned: dict[Name, int]) -> dict[Name, float]:
    """Every owner holds whole matrices; returns where their threads meet."""
    heights = {}
    for device in range(DEVICES):
        box(axes, MIDDLE, device, OWNER_WIDE)
        mine = [name for name, owner in owned.items() if owner == device]
        total = sum(SHAPES[kind][1] for _, kind in mine) + GAP * (len(mine) - 1)
        x = MIDDLE + (OWNER_WIDE - total) / 2
        for layer, kind in mine:
            rows, cols = SHAPES[kind]
            y = middle_of(device)
            block(axes, (x, y - rows / 2), (cols, rows), kind, solved=True)
            label = f"{kind} {layer + 1}"
            axes.text(
                x + cols / 2,
                y,
                label,
                color="white",
                fontsize=7,
                ha="center",
                va="center",
                rotation=90 if rows > cols else 0,
                zorder=4,
            )
            x += cols + GAP
            heights[layer, kind] = y + BESIDE[kind]
    return heights


def thread(axes: Axes, start: Point, stop: Point, kind: str) -> None:
    bend = (start[0] + stop[0]) / 2
    points = [start, (bend, start[1]), (bend, stop[1]), stop]
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    axes.add_patch(
        PathPatch(
            Curve(points, codes),
            facecolor="none",
            edgecolor=COLORS[kind],
            linewidth=1.1,
            alpha=0.5,
            zorder=1,
        )
    )


def draw() -> Figure:
    figure = Figure(figsize=(10.4, 3.9), dpi=160, layout="constrained")
    axes = figure.subplots()
    owned = owners()
    before = draw_shards(axes, LEFT, solved=False)
    after = draw_shards(axes, RIGHT, solved=True)
    at = draw_owners(axes, owned)
    for (name, device), y in before.items():
        thread(axes, (LEFT + SHARDS_WIDE, y), (MIDDLE, at[name]), name[1])
        thread(axes, (MIDDLE + OWNER_WIDE, at[name]), (RIGHT, after[name, device]), name[1])

    for device in range(DEVICES):
        axes.text(
            -0.4,
            middle_of(device),
            f"device {device}",
            color=INK,
            fontsize=8.5,
            ha="right",
            va="center",
        )
    panels = {
        LEFT + SHARDS_WIDE / 2: ("momentum", "a strip of every matrix"),
        (LEFT + SHARDS_WIDE + MIDDLE) / 2: ("all-to-all", "one a shape"),
        MIDDLE + OWNER_WIDE / 2: ("Newton–Schulz", "whole matrices"),
        (MIDDLE + OWNER_WIDE + RIGHT) / 2: ("all-to-all", "one a shape"),
        RIGHT + SHARDS_WIDE / 2: ("update", "sharded as the parameters"),
    }
    for x, (title, below) in panels.items():
        axes.text(x, 0.75, title, color=INK, fontsize=10, ha="center", fontweight="bold")
        axes.text(x, 0.2, below, color=PALE, fontsize=8, ha="center")
    axes.set_xlim(-3.2, RIGHT + SHARDS_WIDE + 0.1)
    axes.set_ylim(-LANE * DEVICES - 0.1, 1.5)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


if __name__ == "__main__":
    file = Path(__file__).resolve().parent / "images" / "sharding.png"
    draw().savefig(file)
    print(file)
