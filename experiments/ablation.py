"""What each choice in Muon's default is worth: one is changed at a time, on the same seeds.

python experiments/ablation.py run     # under an hour; what is saved is not run again
python experiments/ablation.py report  # the table
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import RESULTS, main
from language import LanguagePlan, LanguageTrial, held_out_loss
from sweeps import final_loss
from trials import Trials

DEFAULT = "the default"
ARMS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "jordan": {"orthogonalizer": "jordan"},
    "exact, by SVD": {"orthogonalizer": "svd"},
    "fast": {"orthogonalizer": "fast"},
    "bfloat16": {"orthogonalizer": "bfloat16"},
    "AdamW without Nesterov": {"fallback_nesterov": False},
    "optax.contrib.muon": {"optimizer": "optax-muon"},
}
"""By name: what differs from a run of `muon` as the example has it."""


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Every arm at every rate and on every seed."""

    arms: tuple[str, ...] = tuple(ARMS)
    rates: tuple[float, ...] = (8e-3,)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 400
    width: int = 128
    layers: int = 4
    results: Path = RESULTS / "ablation.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, held_out_loss, self.results, self.workers)

    def runs(self, arm: str, rate: float) -> list[LanguageTrial]:
        chosen = {"optimizer": "muon"} | ARMS[arm] | self.shared
        return [
            LanguageTrial(learning_rate=rate, steps=self.steps, seed=seed, **chosen)
            for seed in self.seeds
        ]


def run(plan: Plan) -> None:
    by_seed = zip(*(plan.runs(arm, rate) for arm in plan.arms for rate in plan.rates), strict=True)
    plan.trials.measure(trial for trials in by_seed for trial in trials)


def report(plan: Plan) -> str:
    """Tabulates mean losses by rate, and how far each is above the default at its best rate."""
    rates = [f"{rate:g}" for rate in plan.rates]
    rows = [
        f"| | {' | '.join(rates)} | above {DEFAULT}, same seeds | by seed |",
        "|---" * (len(rates) + 3) + "|",
    ]
    reference = best_losses(plan, DEFAULT)
    for arm in plan.arms:
        means = [f"{statistics.mean(losses(plan, arm, rate)):.4f}" for rate in plan.rates]
        best = best_losses(plan, arm)
        above = [ours - theirs for ours, theirs in zip(best, reference, strict=True)]
        by_seed = ", ".join(f"{each:+.4f}" for each in above)
        compared = [""] * 2 if arm == DEFAULT else [mean_and_error(above), by_seed]
        rows.append(f"| {arm} | {' | '.join([*means, *compared])} |")
    return "\n".join(rows)


def losses(plan: Plan, arm: str, rate: float) -> list[float]:
    return list(map(final_loss, plan.trials.measure(plan.runs(arm, rate)).values()))


def best_losses(plan: Plan, arm: str) -> list[float]:
    """Returns those of all seeds at the rate of the lowest mean."""
    return min((losses(plan, arm, rate) for rate in plan.rates), key=statistics.mean)


def mean_and_error(values: list[float]) -> str:
    """Writes a mean and its standard error."""
    if len(values) < 2:
        return f"{values[0]:+.4f}"
    return f"{statistics.mean(values):+.4f} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report)
