"""Tables of the comparison of recipes: one for each setting, one row for each arm."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from experiments.trials import Measured

Trial = Any  # a RecipeTrial; importing its module here would be circular


def report(saved: Mapping[Trial, Measured]) -> str:
    """Returns a table for each setting in the order of its first trial."""
    settings: dict[str, dict[Trial, dict[tuple[float, int], Measured]]] = {}
    for trial, measured in saved.items():
        arm = replace(trial, learning_rate=0.0, seed=0)
        arms = settings.setdefault(_setting(trial), {})
        arms.setdefault(arm, {})[trial.learning_rate, trial.seed] = measured
    return "\n\n".join(_table(name, arms) for name, arms in settings.items())


def _setting(trial: Trial) -> str:
    if trial.task == "digits":
        return f"digits, {trial.steps} steps: loss (errors)"
    return f"{trial.batch_size} × 128, width {trial.width}, {trial.steps} steps: loss"


def _table(title: str, arms: Mapping[Trial, Mapping[tuple[float, int], Measured]]) -> str:
    head = (
        f"| {title} | input, head, vectors: rate × | decay | seed 0 by peak | best peak by seed |"
    )
    return "\n".join([head, "|---" * 5 + "|", *(_row(*each) for each in arms.items())])


def _row(arm: Trial, measured: Mapping[tuple[float, int], Measured]) -> str:
    first = {rate: found for (rate, seed), found in sorted(measured.items()) if seed == 0}
    best = min(first, key=lambda rate: first[rate]["loss"] or float("inf"))
    by_seed = [found for (rate, _), found in sorted(measured.items()) if rate == best]
    named = arm.optimizer + ("" if arm.precondition == "none" else f", {arm.precondition}")
    cells = [
        named,
        f"{arm.input:g}, {arm.head:g}, {arm.vector:g}",
        f"{arm.input_decay:g}, {arm.head_decay:g}, {arm.vector_decay:g}",
        ", ".join(f"{rate:g}: {_score(arm, found)}" for rate, found in first.items()),
        ", ".join(_score(arm, found) for found in by_seed) if len(by_seed) > 1 else "",
    ]
    return f"| {' | '.join(cells)} |"


def _score(arm: Trial, found: Measured) -> str:
    if found["loss"] is None:
        return "diverged"
    errors = f" ({found['error']:.2%})" if arm.task == "digits" else ""
    return f"{found['loss']:.4f}{errors}"
