"""Muon and AdamW on a mixture of experts: the loss, and how evenly the experts are used.

python -m experiments.mixture run     # a few minutes; skips saved trials
python -m experiments.mixture report  # the table and the figure
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.curves import by_step
from experiments.language import LanguagePlan
from experiments.report import (
    COLORS,
    LOSS,
    draw_curves,
    draw_sweep,
    listed,
    mean_and_seeds,
    panels,
    table,
)
from experiments.sweeps import ORTHOGONALIZER, best_on_seeds, final_loss
from experiments.trials import Measured, Trials
from trainer.language import SampleConfig, TextConfig
from trainer.models.mixture import MixtureConfig
from trainer.optimizers import OptimizerConfig
from trainer.programs.moe import Config, train
from trainer.training import RunConfig

OPTIMIZERS = {"muon": "Muon", "adamw": "AdamW"}
EVALUATIONS = 6


@dataclass(frozen=True)
class MixtureTrial:
    """One run; all other settings are the trainer's defaults."""

    optimizer: str
    learning_rate: float
    steps: int
    seed: int
    batch_size: int
    width: int
    layers: int
    data: str | None


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Learning rates are swept on the first seed; each optimizer's best runs on all seeds."""

    steps: int = 250
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    results: Path = RESULTS / "mixture.jsonl"

    @property
    def trials(self) -> Trials[MixtureTrial]:
        return Trials(MixtureTrial, measure, self.results, self.workers)

    def sweep(self, optimizer: str) -> list[MixtureTrial]:
        return [
            MixtureTrial(optimizer, rate, self.steps, self.seeds[0], **self.shared)
            for rate in self.rates
        ]


def measure(trial: MixtureTrial) -> Measured:
    """Trains once; returns the loss and the experts' loads on held-out text, layer by layer."""
    every = max(1, trial.steps // EVALUATIONS)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            Config(
                TextConfig(
                    None if trial.data is None else Path(trial.data), batch_size=trial.batch_size
                ),
                MixtureConfig(width=trial.width, layers=trial.layers),
                OptimizerConfig(
                    trial.optimizer,
                    learning_rate=trial.learning_rate,
                    orthogonalizer=ORTHOGONALIZER,
                ),
                RunConfig(
                    steps=trial.steps,
                    seed=trial.seed,
                    eval_every=every,
                    checkpoint_every=trial.steps,
                    out=Path(folder) / "run",
                    quiet=True,
                ),
                SampleConfig(sample_tokens=1),
            )
        )
        rows = map(json.loads, result.run.folder.metrics.read_text().splitlines())
        held_out = [row for row in rows if "held_out/loss" in row]
    return {
        "held_out_loss": by_step(result.run.held_out_loss),
        "largest_load": by_step({row["step"]: max(_parts(row, "load")) for row in held_out}),
        "dropped": by_step({row["step"]: mean(_parts(row, "dropped")) for row in held_out}),
        "load": [round(part, 4) for part in _parts(held_out[-1], "load")],
    }


def _parts(row: Mapping[str, float], quantity: str) -> list[float]:
    """Returns the logged values of `quantity` on held-out text, layer by layer."""
    return [value for name, value in row.items() if name.startswith(f"held_out/{quantity}/")]


def run(plan: Plan) -> None:
    for optimizer in OPTIMIZERS:
        plan.trials.measure(plan.sweep(optimizer))
    for optimizer in OPTIMIZERS:
        best_runs(plan, optimizer)


def best_runs(plan: Plan, optimizer: str) -> dict[MixtureTrial, Measured]:
    """Returns the results at the best learning rate on all seeds."""
    return best_on_seeds(plan.trials, plan.sweep(optimizer), plan.seeds)


def report(plan: Plan) -> str:
    experts = MixtureConfig(width=plan.width).experts
    rows = []
    for optimizer, name in OPTIMIZERS.items():
        runs = best_runs(plan, optimizer)
        last = str(plan.steps)
        loss, largest, dropped = (
            [each[quantity][last] for each in runs.values()]
            for quantity in ("held_out_loss", "largest_load", "dropped")
        )
        rows.append(
            (
                name,
                f"{next(iter(runs)).learning_rate:g}",
                *mean_and_seeds(loss),
                listed((experts * each for each in largest), ".2f"),
                listed(dropped, ".1%"),
            )
        )
    head = ("optimizer", "best peak rate", "held-out loss, mean", "by seed")
    return table((*head, "largest load of an expert, times its equal share", "dropped"), rows)


def draw(plan: Plan) -> Figure:
    figure, (curves, balance, rates) = panels(3)
    experts = MixtureConfig(width=plan.width).experts
    losses, shares, swept = {}, {}, {}
    for optimizer, name in OPTIMIZERS.items():
        runs, color = best_runs(plan, optimizer).values(), COLORS[optimizer]
        losses[name] = color, [each["held_out_loss"] for each in runs]
        loads = [each["largest_load"] for each in runs]
        shares[name] = color, [{at: experts * part for at, part in each.items()} for each in loads]
        final = {
            trial.learning_rate: final_loss(measured)
            for trial, measured in plan.trials.measure(plan.sweep(optimizer)).items()
        }
        swept[name] = color, final
    draw_curves(curves, losses, ylabel=LOSS, title="best rate, all seeds")
    draw_curves(balance, shares, legend=False, title="largest load, times an equal share")
    balance.axhline(1, color="#555555", linewidth=0.9, linestyle="--")
    draw_sweep(rates, swept, ticks=plan.rates, legend=False, title="loss at the end, first seed")
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"mixture.png": draw})
