"""How much does each setting of Muon matter? Changes one at a time, on the same seeds.

python -m experiments.ablation run     # several hours; skips saved trials
python -m experiments.ablation report  # the table
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial, held_out_loss
from experiments.report import listed, table
from experiments.sweeps import final_loss
from experiments.trials import Trials

RATE = 8e-3
ACCURATE, FAST, SVD, JORDAN = "`accurate`", "`fast`, the default", "exact, by SVD", "`jordan`"
ARMS: dict[str, dict[str, Any]] = {
    ACCURATE: {},
    FAST: {"orthogonalizer": "fast"},
    SVD: {"orthogonalizer": "svd"},
    JORDAN: {"orthogonalizer": "jordan"},
    "`bfloat16`": {"orthogonalizer": "bfloat16"},
    "`fallback_nesterov=False`": {"fallback_nesterov": False},
    "Muon's rate × 0.9": {"learning_rate": 0.9 * RATE, "fallback_learning_rate": RATE},
    "attention's rate × 1.4": {"attention_rate": 1.4},
    "`fast`, attention's × 1.4": {"orthogonalizer": "fast", "attention_rate": 1.4},
    "`jordan`, attention's × 1.4": {"orthogonalizer": "jordan", "attention_rate": 1.4},
    "`optax.contrib.muon`": {"optimizer": "optax-muon"},
}
"""Settings of each arm that differ from `muon` with an accurate orthogonalizer and its defaults.

Jordan's updates have about 0.9 times the RMS of orthogonal updates, like a lower learning rate.
"""


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Every arm runs on all `seeds`; the candidates for the default also run on `more_seeds`.

    Then `large_arms` run again, for longer and at a batch of `large_batch_size`, which is the
    trainer's default.
    """

    arms: tuple[str, ...] = tuple(ARMS)
    """The first is the reference."""
    steps: int = 400
    more_seeds: tuple[int, ...] = (3, 4, 5)
    on_more_seeds: tuple[str, ...] = (ACCURATE, FAST, SVD, JORDAN)
    large_batch_size: int = 32
    large_arms: tuple[str, ...] = (FAST, SVD, JORDAN)
    large_steps: int = 720
    large_more_seeds: tuple[int, ...] = (3, 4)
    large_on_more_seeds: tuple[str, ...] = (FAST, JORDAN)
    width: int = 128
    layers: int = 4
    results: Path = RESULTS / "ablation.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, held_out_loss, self.results, self.workers)

    @property
    def large(self) -> "Plan":
        """Returns the same plan at the large batch."""
        return replace(
            self,
            batch_size=self.large_batch_size,
            arms=self.large_arms,
            steps=self.large_steps,
            more_seeds=self.large_more_seeds,
            on_more_seeds=self.large_on_more_seeds,
        )

    def runs(self, arm: str) -> list[LanguageTrial]:
        chosen = {"optimizer": "muon", "learning_rate": RATE} | ARMS[arm] | self.shared
        seeds = (*self.seeds, *(self.more_seeds if arm in self.on_more_seeds else ()))
        return [LanguageTrial(steps=self.steps, seed=seed, **chosen) for seed in seeds]


def run(plan: Plan) -> None:
    for each in (plan, plan.large):
        each.trials.measure(trial for arm in each.arms for trial in each.runs(arm))


def report(plan: Plan) -> str:
    """Tabulates all arms, then those at the large batch."""
    return "\n\n".join(map(arms_table, (plan, plan.large)))


def arms_table(plan: Plan) -> str:
    """Tabulates the final losses, and their differences from the reference on the same seeds."""
    reference, *others = plan.arms
    baseline = losses(plan, reference)
    return table(
        ("", "held-out loss, mean", f"above {reference}", "by seed"),
        [
            (reference, f"{statistics.mean(baseline):.4f}", "", ""),
            *((arm, *compared(losses(plan, arm), baseline)) for arm in others),
        ],
    )


def losses(plan: Plan, arm: str) -> list[float]:
    return list(map(final_loss, plan.trials.measure(plan.runs(arm)).values()))


def compared(found: list[float], baseline: list[float]) -> tuple[str, str, str]:
    """Returns the mean loss, the mean difference from `baseline`, and the differences by seed."""
    above = [ours - theirs for ours, theirs in zip(found, baseline[: len(found)], strict=True)]
    return f"{statistics.mean(found):.4f}", mean_and_error(above), listed(above, "+.4f")


def mean_and_error(values: list[float]) -> str:
    """Returns a mean and its standard error."""
    if len(values) < 2:
        return f"{values[0]:+.4f}"
    return f"{statistics.mean(values):+.4f} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report)
