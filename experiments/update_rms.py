"""How large are the updates of each matrix with AdamW, and with Muon under three scales?

The scales are from Liu et al. 2025, section 3.1: 0.2·√H for every matrix of a model of width H
(hidden_size); the RMS of each update set to 0.2 (update_norm); and 0.2·√max(rows, cols), which
gives the same RMS by lemma 1 (match_rms).

python -m experiments.update_rms run     # five minutes; skips saved trials
python -m experiments.update_rms report  # the tables and the figure
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial
from experiments.observed import KINDS, by_kind, observe, root_mean_square
from experiments.report import (
    COLORS,
    MORE_COLORS,
    draw_curves,
    mean_and_range,
    mean_and_seeds,
    panels,
    table,
)
from experiments.sweeps import (
    ORTHOGONALIZER,
    best_on_seeds,
    final_loss,
    losses_by_rate,
)
from experiments.trials import Measured, Trials

ADAMW = "AdamW"
ARMS = {
    "0.2·√H": ("muon", "hidden_size:{width}", COLORS["optax-muon"]),
    "update norm": ("muon", "update_norm", MORE_COLORS[0]),
    "match RMS": ("muon", "match_rms", COLORS["muon"]),
    ADAMW: ("adamw", "match_rms", COLORS["adamw"]),
}
"""Optimizer, scale (AdamW has none) and color of each arm."""
MLP = ("gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Learning rates are swept on the first seed; the best one of each arm runs on all seeds."""

    steps: int = 300
    adamw_rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    muon_rates: tuple[float, ...] = (6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
    orthogonalizer: str = ORTHOGONALIZER
    width: int = 48
    results: Path = RESULTS / "update_rms.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, measure, self.results, self.workers)

    def sweep(self, arm: str) -> list[LanguageTrial]:
        optimizer, scale, _ = ARMS[arm]
        return [
            LanguageTrial(
                optimizer,
                rate,
                self.steps,
                self.seeds[0],
                scale=scale.format(width=self.width),
                orthogonalizer=self.orthogonalizer,
                evaluations=5,
                **self.shared,
            )
            for rate in (self.adamw_rates if arm == ADAMW else self.muon_rates)
        ]


def measure(trial: LanguageTrial) -> Measured:
    """Returns, by step, the held-out loss and the RMS of updates and weights by kind of matrix."""
    measured: Measured = {"held_out_loss": {}, "update_rms": {}, "weight_rms": {}}
    for seen in observe(trial):
        if seen.step > 1:  # the head starts at zero, so no gradient reaches a block in step 1
            at = str(seen.step)
            measured["held_out_loss"][at] = round(seen.held_out_loss, 5)
            measured["update_rms"][at] = by_kind(root_mean_square, seen.direction)
            measured["weight_rms"][at] = by_kind(root_mean_square, seen.params)
    return measured


def best_runs(plan: Plan, arm: str) -> dict[LanguageTrial, Measured]:
    return best_on_seeds(plan.trials, plan.sweep(arm), plan.seeds)


def run(plan: Plan) -> None:
    for arm in ARMS:
        best_runs(plan, arm)


def update_rms(plan: Plan, arm: str, kind: str) -> list[float]:
    """Returns the RMS of updates of one kind of matrix, at every evaluation on all seeds."""
    runs = best_runs(plan, arm).values()
    return [look[kind] for measured in runs for look in measured["update_rms"].values()]


def report(plan: Plan) -> str:
    return "\n\n".join([_update_table(plan), _loss_table(plan)])


def _update_table(plan: Plan) -> str:
    return table(
        ("RMS of updates", *KINDS),
        [
            (arm, *(mean_and_range(update_rms(plan, arm, kind), ".3f") for kind in KINDS))
            for arm in ARMS
        ],
    )


def _loss_table(plan: Plan) -> str:
    rows = []
    for arm in ARMS:
        swept = plan.trials.measure(plan.sweep(arm))
        best = list(best_runs(plan, arm).values())
        weights = [measured["weight_rms"][str(plan.steps)] for measured in best]
        query = statistics.mean(each["query"] for each in weights)
        mlp = statistics.mean(each[kind] for each in weights for kind in MLP)
        losses = mean_and_seeds([final_loss(measured) for measured in best])
        rows.append((arm, losses_by_rate(swept), *losses, f"{query:.4f}", f"{mlp:.4f}"))
    head = ("", "held-out loss by peak rate, first seed", "best, mean", "by seed")
    return table((*head, "RMS of query weights", "of MLP weights"), rows)


def draw(plan: Plan) -> Figure:
    figure, (by_matrix, over_steps) = panels(2)
    by_matrix.axhspan(0.2, 0.4, color="#888888", alpha=0.15, linewidth=0)
    for index, (arm, (_, _, color)) in enumerate(ARMS.items()):
        found = [update_rms(plan, arm, kind) for kind in KINDS]
        mean = [statistics.mean(each) for each in found]
        below = [middle - min(each) for middle, each in zip(mean, found, strict=True)]
        above = [max(each) - middle for middle, each in zip(mean, found, strict=True)]
        at = [place + (index - 1.5) * 0.15 for place in range(len(KINDS))]
        by_matrix.errorbar(at, mean, (below, above), fmt="o", color=color, label=arm, capsize=2)
    by_kinds = {}
    for kinds, color in ((("query", "key", "value", "out"), COLORS["adamw"]), (MLP, "#2a7f62")):
        curves = [
            {
                step: statistics.mean(look[kind] for kind in kinds)
                for step, look in measured["update_rms"].items()
            }
            for measured in best_runs(plan, ADAMW).values()
        ]
        by_kinds[", ".join(kinds)] = color, curves
    draw_curves(over_steps, by_kinds, legend=False, ylabel="RMS of updates", title="AdamW's")
    over_steps.axhspan(0.2, 0.4, color="#888888", alpha=0.15, linewidth=0, label="0.2 to 0.4")
    by_matrix.set(
        ylabel="RMS of updates", ylim=(0, None), title="mean, and range over steps and seeds"
    )
    by_matrix.set_xticks(range(len(KINDS)), KINDS)
    over_steps.set(ylim=(0, None))
    for axes in (by_matrix, over_steps):
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"update_rms.png": draw})
