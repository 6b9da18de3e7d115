"""Tuning with equal budgets: every side sweeps its rates on one seed, and its best runs on more."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from trials import Measured, Trials

Trial = TypeVar("Trial", bound=Any)


def best_on_seeds(
    trials: Trials[Trial], swept: Iterable[Trial], seeds: Sequence[int]
) -> dict[Trial, Measured]:
    """Returns what the best of `swept`, by the held-out loss at the end, measured on all seeds."""
    measured = trials.measure(swept)
    best = min(measured, key=lambda trial: final_loss(measured[trial]))
    return trials.measure(replace(best, seed=seed) for seed in seeds)


def final_loss(measured: Measured) -> float:
    """Returns the held-out loss after the last step, of what a trial measured."""
    return list(measured["held_out_loss"].values())[-1]
