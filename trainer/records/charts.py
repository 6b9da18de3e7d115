"""Line charts, drawn with Pillow: it is enough for them, and Matplotlib is 80 MB."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1200, 720
LEFT, TOP, RIGHT, BOTTOM = 90, 130, 1105, 640  # of the plotted area
SMOOTHER = 3  # Pillow draws lines without anti-aliasing: draw larger, then reduce
TICKS = 6
INK, QUIET, GRID = "#222222", "#555555", "#e6e6e6"


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    points: Mapping[float, float]
    """y by x, in ascending order of x."""
    colour: str
    label: str = ""
    """Its name in the legend; a curve with an empty label is not in the legend."""
    width: float = 3.0
    """In pixels."""
    dots: bool = False
    """Marks every point, and writes the last value."""


def draw_chart(
    file: Path,
    curves: Sequence[Curve],
    *,
    title: str,
    subtitle: str = "",
    x: str,
    y: str,
    y_range: tuple[float, float],
) -> None:
    """Draws curves over x from 0, and writes a PNG.

    Args:
        x, y: what the axes show.
        y_range: lowest and highest y shown; curves are cut off there.
    """
    ends = [0.0, max(max(curve.points) for curve in curves)]
    chart = _Chart(ends, _with_margin(y_range))
    chart.axes(x, y)
    chart.text((LEFT - 60, 24), title, 30)
    chart.text((LEFT - 60, 68), subtitle, 18, QUIET)
    for curve in curves:
        chart.curve(curve)
    chart.legend([curve for curve in curves if curve.label])
    chart.save(file)


def ticks(low: float, high: float) -> dict[float, str]:
    """Returns about six round numbers from `low` to `high`, and how each is written."""
    rough = (high - low) / TICKS
    power = math.floor(math.log10(rough))
    step = next(step for step in (10.0**power * f for f in (1, 2, 5, 10)) if step >= rough)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {index * step: f"{index * step:.{digits}f}" for index in range(first, last + 1)}


class _Chart:
    """A picture and its two scales, in pixels of the finished chart."""

    def __init__(self, x_range: Sequence[float], y_range: Sequence[float]) -> None:
        self._ranges = x_range, y_range
        self._image = Image.new("RGB", (WIDTH * SMOOTHER, HEIGHT * SMOOTHER), "white")
        self._draw = ImageDraw.Draw(self._image)

    def axes(self, x: str, y: str) -> None:
        for tick, written in ticks(*self._ranges[1]).items():
            _, at = self._place(0, tick)
            self._line([(LEFT, at), (RIGHT, at)], GRID, 1)
            self.text((LEFT - 12, at), written, 18, QUIET, anchor="rm")
        for tick, written in ticks(*self._ranges[0]).items():
            at, _ = self._place(tick, 0)
            self._line([(at, BOTTOM), (at, BOTTOM + 6)], QUIET, 1)
            self.text((at, BOTTOM + 12), written, 18, QUIET, anchor="mt")
        self._line([(LEFT, BOTTOM), (RIGHT, BOTTOM)], QUIET, 1)
        self.text(((LEFT + RIGHT) / 2, BOTTOM + 44), x, 18, anchor="mt")
        self.text((LEFT - 60, TOP - 14), y, 18, anchor="lb")

    def curve(self, curve: Curve) -> None:
        """Draws a curve and then restores everything outside the plotted area."""
        before, places = self._image.copy(), [self._place(*point) for point in curve.points.items()]
        self._line(places, curve.colour, curve.width)
        if curve.dots:
            for x, y in places:
                self._dot(x, y, 2 * curve.width, curve.colour)
        box = tuple(SMOOTHER * edge for edge in (LEFT, TOP, RIGHT + 8, BOTTOM))
        before.paste(self._image.crop(box), box)
        self._image, self._draw = before, ImageDraw.Draw(before)
        if curve.dots:
            (x, y), value = places[-1], list(curve.points.values())[-1]
            self.text((x + 14, y), f"{value:.3f}", 20, curve.colour, anchor="lm")

    def legend(self, curves: Sequence[Curve]) -> None:
        for row, curve in enumerate(curves):
            y = TOP + 16 + 30 * row
            self._line([(RIGHT - 300, y), (RIGHT - 264, y)], curve.colour, curve.width)
            if curve.dots:
                self._dot(RIGHT - 282, y, 2 * curve.width, curve.colour)
            self.text((RIGHT - 250, y), curve.label, 19, anchor="lm")

    def text(
        self, at: tuple[float, float], text: str, size: int, colour: str = INK, anchor: str = "la"
    ) -> None:
        font: Any = ImageFont.load_default(size * SMOOTHER)
        x, y = at
        self._draw.text((x * SMOOTHER, y * SMOOTHER), text, colour, font, anchor)

    def save(self, file: Path) -> None:
        self._image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(file, optimize=True)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        (x_low, x_high), (y_low, y_high) = self._ranges
        right, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return LEFT + right * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    def _line(self, places: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        larger = [(x * SMOOTHER, y * SMOOTHER) for x, y in places]
        self._draw.line(larger, colour, round(width * SMOOTHER), "curve")

    def _dot(self, x: float, y: float, radius: float, colour: str) -> None:
        edges = (x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse([edge * SMOOTHER for edge in edges], colour)


def _with_margin(y_range: tuple[float, float]) -> tuple[float, float]:
    low, high = y_range
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin
