"""Equal tuning budgets: every arm sweeps learning rates on one seed; its best runs on all seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from experiments.trials import Measured, Trials

Trial = TypeVar("Trial", bound=Any)

ORTHOGONALIZER = "accurate"
"""Muon's orthogonalizer in all runs that do not vary it.

It is accurate, so that no result depends on the error of the default orthogonalizer.
"""


def final_loss(measured: Measured) -> float:
    """Returns the held-out loss of a trial after its last step."""
    return list(measured["held_out_loss"].values())[-1]


def best_trial(
    trials: Trials[Trial], swept: Iterable[Trial], score: Callable[[Measured], Any] = final_loss
) -> Trial:
    """Returns the trial of `swept` with the lowest score."""
    measured = trials.measure(swept)
    return min(measured, key=lambda trial: score(measured[trial]))


def best_trials(
    trials: Trials[Trial],
    swept: Iterable[Trial],
    seeds: Sequence[int],
    score: Callable[[Measured], Any] = final_loss,
) -> list[Trial]:
    """Returns the best trial of `swept`, once for each seed."""
    best = best_trial(trials, swept, score)
    return [replace(best, seed=seed) for seed in seeds]


def best_on_seeds(
    trials: Trials[Trial],
    swept: Iterable[Trial],
    seeds: Sequence[int],
    score: Callable[[Measured], Any] = final_loss,
) -> dict[Trial, Measured]:
    """Returns the results of the best trial of `swept` on all seeds."""
    return trials.measure(best_trials(trials, swept, seeds, score))


def losses_by_rate(swept: Mapping[Any, Measured], rate: str = "learning_rate") -> str:
    """Returns the final loss of every learning rate in the sweep, for a cell of a table."""
    return ", ".join(
        f"{getattr(trial, rate):g}: {final_loss(measured):.4f}" for trial, measured in swept.items()
    )
