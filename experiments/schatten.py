"""Which Schatten norm trains best, from normalised SGD (p = 2) to Muon (p = ∞)?

python -m experiments.schatten run     # 10 minutes on one core; skips saved trials
python -m experiments.schatten report  # the tables and the figure
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.curves import by_step
from experiments.language import LanguagePlan, LanguageTrial
from experiments.language import run as train
from experiments.report import LOSS, draw_sweep, mean_and_seeds, panels, table
from experiments.sweeps import best_trials, final_loss
from experiments.trials import Measured, Trials
from muon_jax.diagnostics import by_matrix, singular_value_entropy


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """The best learning rate of each norm on the first seed runs on all seeds.

    Only the learning rate of the matrices is swept. AdamW trains all other parameters at the same
    learning rate in all runs.
    """

    norms: tuple[float, ...] = (2.0, 3.0, 4.0, 8.0, 32.0, float("inf"))
    rates: tuple[float, ...] = (6.25e-4, 1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)
    fallback_rate: float = 1e-2
    steps: int = 300
    evaluations: int = 6
    results: Path = RESULTS / "schatten.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, measured, self.results, self.workers)

    def sweep(self, norm: float) -> list[LanguageTrial]:
        return [
            LanguageTrial(
                "muon",
                rate,
                self.steps,
                self.seeds[0],
                orthogonalizer=f"schatten:{norm:g}",
                evaluations=self.evaluations,
                fallback_learning_rate=self.fallback_rate,
                **self.shared,
            )
            for rate in self.rates
        ]


def measured(trial: LanguageTrial) -> Measured:
    """Returns the held-out loss by step, and the mean SVD entropy of the trained matrices."""
    result = train(trial)
    weights = nnx.to_pure_dict(nnx.state(result.run.model, nnx.Param))
    entropies = jnp.concatenate(list(by_matrix(singular_value_entropy, weights).values()))
    return {
        "held_out_loss": by_step(result.run.held_out_loss),
        "entropy": round(float(entropies.mean()), 5),
    }


def run(plan: Plan) -> None:
    plan.trials.measure(trial for norm in plan.norms for trial in plan.sweep(norm))
    plan.trials.measure(trial for norm in plan.norms for trial in best(plan, norm))


def swept(plan: Plan, norm: float) -> dict[LanguageTrial, float]:
    """Returns the final loss by trial, on the first seed."""
    found = plan.trials.measure(plan.sweep(norm))
    return {trial: final_loss(each) for trial, each in found.items()}


def best(plan: Plan, norm: float) -> list[LanguageTrial]:
    """Returns the trials of the best rate on all seeds."""
    return best_trials(plan.trials, plan.sweep(norm), plan.seeds)


def power(norm: float) -> float:
    """Returns the power to which the singular values are raised."""
    return 1 / (norm - 1)


def named(norm: float) -> str:
    return "∞" if norm == float("inf") else f"{norm:g}"


def report(plan: Plan) -> str:
    return f"{best_table(plan)}\n\n{sweep_table(plan)}"


def best_table(plan: Plan) -> str:
    rows = []
    for norm in plan.norms:
        runs = plan.trials.measure(best(plan, norm))
        rows.append(
            (
                named(norm),
                f"{power(norm):.3g}",
                f"{next(iter(runs)).learning_rate:g}",
                *mean_and_seeds([final_loss(found) for found in runs.values()]),
                f"{statistics.mean(found['entropy'] for found in runs.values()):.3f}",
            )
        )
    head = ("p", "power of the singular values", "best rate", "held-out loss, mean", "by seed")
    return table((*head, "entropy of the weights"), rows)


def sweep_table(plan: Plan) -> str:
    return table(
        ("p", *(f"{rate:g}" for rate in plan.rates)),
        [
            (named(norm), *(f"{loss:.4f}" for loss in swept(plan, norm).values()))
            for norm in plan.norms
        ],
    )


def draw(plan: Plan) -> Figure:
    figure, (by_power, by_rate) = panels(2)
    colors = dict(
        zip(plan.norms, colormaps["viridis"](np.linspace(0, 0.9, len(plan.norms))), strict=True)
    )
    means, rates = dict[float, float](), {}
    for norm, color in colors.items():
        losses = [final_loss(each) for each in plan.trials.measure(best(plan, norm)).values()]
        means[power(norm)] = statistics.mean(losses)
        by_power.plot([power(norm)] * len(losses), losses, "o", color=color, alpha=0.5)
        by_power.annotate(
            f"p = {named(norm)}",
            (power(norm), max(losses)),
            xytext=(0, 6),
            textcoords="offset points",
            rotation=60,
            fontsize=8,
        )
        found = {trial.learning_rate: loss for trial, loss in swept(plan, norm).items()}
        rates[f"p = {named(norm)}"] = color, found
    by_power.plot(list(means), list(means.values()), color="#555555", zorder=0)
    by_power.set(
        xlabel="power of the singular values, 1/(p − 1)",
        ylabel=LOSS,
        title="best rate, all seeds and their mean",
    )
    by_power.margins(y=0.25)
    draw_sweep(
        by_rate,
        rates,
        ticks=plan.rates,
        base=2,
        xlabel="peak learning rate of the matrices",
        title="first seed",
    )
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"schatten.png": draw})
