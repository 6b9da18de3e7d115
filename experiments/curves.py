"""Curves over steps: their JSON format, their mean, and the step where they reach a level."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.report import Curve


def by_step(curve: Mapping[int, float]) -> dict[str, float]:
    """Returns a curve in the format of the results files."""
    return {str(step): round(value, 5) for step, value in curve.items()}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Returns the mean of curves that were measured at the same steps."""
    return {step: statistics.mean(curve[step] for curve in curves) for step in curves[0]}


def steps_to(level: float, curve: Curve) -> float | None:
    """Returns the step where a curve first falls to `level`, by linear interpolation, or None."""
    steps, values = [int(step) for step in curve], list(curve.values())
    reached = next((index for index, value in enumerate(values) if value <= level), None)
    if reached is None:
        return None
    around = slice(max(0, reached - 1), reached + 1)
    return float(np.interp(level, values[around][::-1], steps[around][::-1]))
