"""Does a more accurate polar factor train better? Varies steps and coefficients of Newton-Schulz.

Liu et al. 2025, section 2.2: ten steps are more accurate than five, and do not train better.

python -m experiments.exactness run     # seven minutes; skips saved trials
python -m experiments.exactness report  # the table and the figure
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial
from experiments.observed import observe
from experiments.report import MORE_COLORS, mean_and_seeds, panels, table
from experiments.sweeps import best_on_seeds, final_loss, losses_by_rate
from experiments.trials import Measured, Trials
from muon_jax.diagnostics import measure as measure_matrices

REFERENCE = "jordan:5"
COLORS = dict(zip(("jordan", "keller", "minimax", "svd"), MORE_COLORS, strict=False))


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """The learning rate is swept for `REFERENCE`; all orthogonalizers then use the best one."""

    maps: tuple[str, ...] = (
        *("jordan:3", "jordan:5", "jordan:7", "jordan:10"),
        *("keller:5", "keller:10"),
        *("minimax:3", "minimax:5"),
        "svd",
    )
    steps: int = 300
    rates: tuple[float, ...] = (6e-3, 1.2e-2, 2.4e-2)
    width: int = 48
    results: Path = RESULTS / "exactness.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, measure, self.results, self.workers)

    def sweep(self) -> list[LanguageTrial]:
        return [
            LanguageTrial(
                "muon",
                rate,
                self.steps,
                self.seeds[0],
                orthogonalizer=REFERENCE,
                evaluations=3,
                **self.shared,
            )
            for rate in self.rates
        ]


def measure(trial: LanguageTrial) -> Measured:
    """Returns, by step, the held-out loss and how far updates are from orthogonal ones."""
    measured: Measured = {"held_out_loss": {}, "residual": {}}
    for seen in observe(trial):
        if seen.step > 1:  # the head starts at zero, so no gradient reaches a block in step 1
            found = measure_matrices(seen.direction, seen.params).values()
            residuals = [float(each.update_residual[0]) for each in found]
            measured["residual"][str(seen.step)] = round(statistics.mean(residuals), 5)
            measured["held_out_loss"][str(seen.step)] = round(seen.held_out_loss, 5)
    return measured


class Row(NamedTuple):
    """Results of one orthogonalizer on all seeds."""

    losses: list[float]
    above: list[float]
    """Differences from the losses of the reference on the same seeds."""
    residual: float


def rows(plan: Plan) -> dict[str, Row]:
    reference = best_on_seeds(plan.trials, plan.sweep(), plan.seeds)
    base = [final_loss(measured) for measured in reference.values()]
    found = {}
    for name in plan.maps:
        of_map = [replace(trial, orthogonalizer=name) for trial in reference]
        measured = list(plan.trials.measure(of_map).values())
        losses = [final_loss(each) for each in measured]
        above = [loss - other for loss, other in zip(losses, base, strict=True)]
        residuals = [value for each in measured for value in each["residual"].values()]
        found[name] = Row(losses, above, statistics.mean(residuals))
    return found


def run(plan: Plan) -> None:
    rows(plan)


def report(plan: Plan) -> str:
    head = ("map", "residual of updates", "held-out loss, mean", "by seed")
    tabulated = table(
        (*head, f"above `{REFERENCE}`, mean", "by seed"),
        [
            (
                f"`{name}`",
                f"{row.residual:.3f}",
                *mean_and_seeds(row.losses),
                *mean_and_seeds(row.above, "+.4f"),
            )
            for name, row in rows(plan).items()
        ],
    )
    rates = losses_by_rate(plan.trials.measure(plan.sweep()))
    return f"{tabulated}\n\n`{REFERENCE}` by peak rate, first seed: {rates}."


def draw(plan: Plan) -> Figure:
    figure, (axes,) = panels(1, width=6.5)
    by_map = rows(plan)
    for at, (name, row) in enumerate(by_map.items()):
        color = COLORS[name.partition(":")[0]]
        axes.plot(row.above, [at] * len(row.above), "o", color=color, alpha=0.4, markersize=4)
        axes.plot(statistics.mean(row.above), at, "D", color=color)
    labels = [f"{name}\nresidual {row.residual:.2f}" for name, row in by_map.items()]
    axes.set_yticks(range(len(by_map)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(
        xlabel=f"held-out loss above {REFERENCE} on the same seed",
        title="every seed, and their mean",
    )
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"exactness.png": draw})
