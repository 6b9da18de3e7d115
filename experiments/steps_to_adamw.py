"""How many of AdamW's steps does Muon need for AdamW's loss, each tuned, with its own schedule?

python experiments/steps_to_adamw.py run     # hours; what is saved is not run again
python experiments/steps_to_adamw.py report  # the table and the figure
"""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import RESULTS, main
from figures import COLORS, band, panels
from language import LanguageTrial, held_out_loss
from matplotlib.figure import Figure
from trials import Trials

OPTIMIZERS = {"muon": "Muon", "optax-muon": "optax.contrib.muon", "adamw": "AdamW"}


@dataclass(frozen=True)
class Plan:
    """Rates are swept on the first seed; the best of each optimizer runs on all."""

    adamw_steps: int = 1800
    muon_steps: int = 720
    adamw_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    muon_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    orthogonalizer: str = "accurate"
    """Of muon_jax."""
    batch_size: int = 8
    width: int = 128
    layers: int = 4
    data: str | None = None
    results: Path = RESULTS / "steps_to_adamw.jsonl"
    workers: int = 1

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, held_out_loss, self.results, self.workers)

    def sweep(self, optimizer: str) -> list[LanguageTrial]:
        adamw = optimizer == "adamw"
        return [
            LanguageTrial(
                optimizer,
                rate,
                self.adamw_steps if adamw else self.muon_steps,
                self.seeds[0],
                self.orthogonalizer,
                batch_size=self.batch_size,
                width=self.width,
                layers=self.layers,
                data=self.data,
            )
            for rate in (self.adamw_rates if adamw else self.muon_rates)
        ]


def run(plan: Plan) -> None:
    for optimizer in OPTIMIZERS:
        best_runs(plan, optimizer)


def best_runs(plan: Plan, optimizer: str) -> dict[LanguageTrial, dict[str, float]]:
    """Returns the held-out curves of the best rate, on all seeds."""
    swept = plan.trials.measure(plan.sweep(optimizer))
    best = min(swept, key=lambda trial: swept[trial]["held_out_loss"][str(trial.steps)])
    measured = plan.trials.measure(replace(best, seed=seed) for seed in plan.seeds)
    return {trial: each["held_out_loss"] for trial, each in measured.items()}


def report(plan: Plan) -> str:
    rows = [
        "| optimizer | steps | best peak rate | held-out loss, mean | by seed |",
        "|---|---|---|---|---|",
    ]
    for optimizer, name in OPTIMIZERS.items():
        curves = best_runs(plan, optimizer)
        trial = next(iter(curves))
        final = [curve[str(trial.steps)] for curve in curves.values()]
        rows.append(
            f"| {name} | {trial.steps} | {trial.learning_rate:g} | {statistics.mean(final):.4f} "
            f"| {', '.join(f'{loss:.4f}' for loss in final)} |"
        )
    return "\n".join(rows)


def draw(plan: Plan) -> Figure:
    figure, (curves, rates) = panels(2)
    for optimizer, name in OPTIMIZERS.items():
        best = best_runs(plan, optimizer)
        band(curves, list(best.values()), color=COLORS[optimizer], label=name)
        swept = plan.trials.measure(plan.sweep(optimizer))
        final = [each["held_out_loss"][str(trial.steps)] for trial, each in swept.items()]
        at = [trial.learning_rate for trial in swept]
        rates.plot(at, final, "o-", color=COLORS[optimizer], label=name)
    curves.set(xlabel="step", ylabel="held-out loss (nats per byte)", title="best rate, all seeds")
    rates.set(xlabel="peak learning rate", xscale="log", title="at the end, first seed")
    for axes in (curves, rates):
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, draw=draw, image="steps_to_adamw.png")
