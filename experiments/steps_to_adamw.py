"""How many of AdamW's steps does Muon need for AdamW's loss, each tuned, with its own schedule?

python experiments/steps_to_adamw.py run     # hours; what is saved is not run again
python experiments/steps_to_adamw.py report  # the table and the figure
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import RESULTS, main
from figures import COLORS, MORE_COLORS, Curve, band, panels, rate_axis
from language import LanguagePlan, LanguageTrial, held_out_loss
from matplotlib.figure import Figure
from sweeps import best_on_seeds, final_loss, losses_by_rate
from trials import Trials

OPTIMIZERS = {"muon": "Muon", "optax-muon": "optax.contrib.muon", "adamw": "AdamW"}


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Rates are swept on the first seed; the best of each optimizer runs on all.

    Muon's best rate serves for `longer_steps` as well, on all seeds.
    """

    adamw_steps: int = 1800
    muon_steps: int = 720
    longer_steps: int = 900
    adamw_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    muon_rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    orthogonalizer: str = "accurate"
    """Of muon_jax."""
    width: int = 128
    layers: int = 4
    results: Path = RESULTS / "steps_to_adamw.jsonl"

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
                orthogonalizer=self.orthogonalizer,
                **self.shared,
            )
            for rate in (self.adamw_rates if adamw else self.muon_rates)
        ]


def run(plan: Plan) -> None:
    for optimizer in OPTIMIZERS:
        best(plan, optimizer)
    longer(plan)


def best(plan: Plan, optimizer: str) -> dict[LanguageTrial, Curve]:
    """Returns the held-out curves of an optimizer's best rate, on all seeds."""
    measured = best_on_seeds(plan.trials, plan.sweep(optimizer), plan.seeds)
    return {trial: each["held_out_loss"] for trial, each in measured.items()}


def longer(plan: Plan) -> dict[LanguageTrial, Curve]:
    """Returns the held-out curves of Muon's longer runs."""
    trials = [replace(trial, steps=plan.longer_steps) for trial in best(plan, "muon")]
    measured = plan.trials.measure(trials)
    return {trial: each["held_out_loss"] for trial, each in measured.items()}


def report(plan: Plan) -> str:
    rows = [
        "| optimizer | steps | loss by peak rate, first seed | best, mean | by seed |",
        "|---|---|---|---|---|",
    ]
    for optimizer, name in OPTIMIZERS.items():
        swept = losses_by_rate(plan.trials.measure(plan.sweep(optimizer)))
        rows.append(_row(name, swept, best(plan, optimizer)))
        if optimizer == "muon":
            rows.append(_row(name, "", longer(plan)))
    return "\n".join(rows)


def _row(name: str, swept: str, curves: Mapping[LanguageTrial, Curve]) -> str:
    steps = str(next(iter(curves)).steps)
    final = [curve[steps] for curve in curves.values()]
    by_seed = ", ".join(f"{loss:.4f}" for loss in final)
    return f"| {name} | {steps} | {swept} | {statistics.mean(final):.4f} | {by_seed} |"


def draw(plan: Plan) -> Figure:
    figure, (curves, rates) = panels(2)
    for optimizer, name in OPTIMIZERS.items():
        color = COLORS[optimizer]
        band(curves, list(best(plan, optimizer).values()), color=color, label=name)
        swept = plan.trials.measure(plan.sweep(optimizer))
        at = [trial.learning_rate for trial in swept]
        rates.plot(at, list(map(final_loss, swept.values())), "o-", color=color, label=name)
    label = f"Muon, {plan.longer_steps} steps"
    band(curves, list(longer(plan).values()), color=MORE_COLORS[1], label=label)
    curves.set(xlabel="step", ylabel="held-out loss (nats per byte)", title="best rate, all seeds")
    curves.set_ylim(top=2.4)
    rate_axis(rates, sorted({*plan.adamw_rates, *plan.muon_rates}))
    rates.set(title="at the end, first seed")
    for axes in (curves, rates):
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, draw=draw, image="steps_to_adamw.png")
