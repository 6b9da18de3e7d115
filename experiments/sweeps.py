"""Tuning with equal budgets: every side sweeps its rates on one seed, and its best runs on more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from experiments.trials import Measured, Trials

Trial = TypeVar("Trial", bound=Any)

ORTHOGONALIZER = "accurate"
"""Muon's in all runs that do not vary it, so that no result hangs on how coarse the default is."""


def final_loss(measured: Measured) -> float:
    """Returns the held-out loss after the last step, of what a trial measured."""
    return list(measured["held_out_loss"].values())[-1]


def best_trial(
    trials: Trials[Trial], swept: Iterable[Trial], score: Callable[[Measured], Any] = final_loss
) -> Trial:
    """Returns the one of `swept` whose score is the lowest."""
    measured = trials.measure(swept)
    return min(measured, key=lambda trial: score(measured[trial]))


def best_trials(
    trials: Trials[Trial],
    swept: Iterable[Trial],
    seeds: Sequence[int],
    score: Callable[[Measured], Any] = final_loss,
) -> list[Trial]:
    """Returns the best of `swept`, once for each seed."""
    best = best_trial(trials, swept, score)
    return [replace(best, seed=seed) for seed in seeds]


def best_on_seeds(
    trials: Trials[Trial],
    swept: Iterable[Trial],
    seeds: Sequence[int],
    score: Callable[[Measured], Any] = final_loss,
) -> dict[Trial, Measured]:
    """Returns what the best of `swept` measured on all seeds."""
    return trials.measure(best_trials(trials, swept, seeds, score))


def losses_by_rate(swept: Mapping[Any, Measured], rate: str = "learning_rate") -> str:
    """Returns the loss at the end of every rate that was swept, for a cell of a table."""
    return ", ".join(
        f"{getattr(trial, rate):g}: {final_loss(measured):.4f}" for trial, measured in swept.items()
    )
