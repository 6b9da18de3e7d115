"""How many steps does Muon need to reach AdamW's loss? Both are tuned, with their own schedules.

python -m experiments.steps_to_adamw run     # hours; skips saved trials
python -m experiments.steps_to_adamw report  # the table and the figure
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial, held_out_loss
from experiments.report import (
    COLORS,
    LOSS,
    MORE_COLORS,
    Curve,
    draw_curves,
    mean_and_seeds,
    panels,
    table,
)
from experiments.sweeps import (
    ORTHOGONALIZER,
    best_on_seeds,
    best_trial,
    losses_by_rate,
)
from experiments.trials import Measured, Trials

OPTIMIZERS = {"muon": "Muon", "optax-muon": "optax.contrib.muon", "adamw": "AdamW"}


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Learning rates are swept on the first seed; each optimizer's best runs on all seeds.

    Then the parameters that are not Muon's get their own learning rate: each of `factors` runs on
    the first seed, and the best one on all seeds. Two more comparisons have one learning rate for
    all parameters: Muon for `longer_steps` on all seeds, and all three optimizers at a batch of
    `large_batch_size`, where learning rates are swept again and the orthogonalizer is the default.
    """

    adamw_steps: int = 1800
    muon_steps: int = 720
    longer_steps: int = 900
    adamw_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    muon_rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
    factors: tuple[float, ...] = (3, 10)
    """Learning rates of the other parameters, as multiples of the learning rate of the matrices."""
    orthogonalizer: str = ORTHOGONALIZER
    """Orthogonalizer of Muon in muon_jax."""
    large_batch_size: int = 32
    large_adamw_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    large_muon_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    default_rate: float = 8e-3
    """Learning rate of `muon` with its default settings at the large batch; it is not swept."""
    width: int = 128
    layers: int = 4
    results: Path = RESULTS / "steps_to_adamw.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, held_out_loss, self.results, self.workers)

    @property
    def large(self) -> "Plan":
        """Returns the same plan at the large batch."""
        return replace(
            self,
            batch_size=self.large_batch_size,
            adamw_rates=self.large_adamw_rates,
            muon_rates=self.large_muon_rates,
            orthogonalizer="fast",
        )

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
        best_of_two_rates(plan, optimizer)
        best(plan.large, optimizer)
    longer(plan)
    with_its_defaults(plan.large)


def best(plan: Plan, optimizer: str) -> dict[LanguageTrial, Curve]:
    """Returns the held-out curves of an optimizer's best rate, on all seeds."""
    return _curves(best_on_seeds(plan.trials, plan.sweep(optimizer), plan.seeds))


def with_factors(plan: Plan, optimizer: str) -> list[LanguageTrial]:
    """Returns a trial for each of `factors`, at the best learning rate on the first seed."""
    chosen = best_trial(plan.trials, plan.sweep(optimizer))
    return [
        replace(chosen, fallback_learning_rate=float(f"{factor * chosen.learning_rate:.6g}"))
        for factor in plan.factors
    ]


def best_of_two_rates(plan: Plan, optimizer: str) -> dict[LanguageTrial, Curve]:
    """Returns the held-out curves of an optimizer's best factor, on all seeds."""
    return _curves(best_on_seeds(plan.trials, with_factors(plan, optimizer), plan.seeds))


def longer(plan: Plan) -> dict[LanguageTrial, Curve]:
    """Returns the held-out curves of Muon's longer runs."""
    trials = [replace(trial, steps=plan.longer_steps) for trial in best(plan, "muon")]
    return _curves(plan.trials.measure(trials))


def with_its_defaults(plan: Plan) -> dict[LanguageTrial, Curve]:
    """Returns the held-out curves of `muon_jax.muon(learning_rate)`, at one rate, on all seeds."""
    trials = [
        LanguageTrial("muon-default", plan.default_rate, plan.muon_steps, seed, **plan.shared)
        for seed in plan.seeds
    ]
    return _curves(plan.trials.measure(trials))


def _curves(measured: Mapping[LanguageTrial, Measured]) -> dict[LanguageTrial, Curve]:
    return {trial: each["held_out_loss"] for trial, each in measured.items()}


def report(plan: Plan) -> str:
    """Tabulates runs with one learning rate, with two, and with one at the large batch."""
    one_rate = [_swept_row(plan, optimizer) for optimizer in OPTIMIZERS]
    one_rate.insert(1, _row(OPTIMIZERS["muon"], "as above", longer(plan)))
    two_rates = []
    for optimizer, name in OPTIMIZERS.items():
        swept = plan.trials.measure(with_factors(plan, optimizer))
        cell = losses_by_rate(swept, "fallback_learning_rate")
        two_rates.append(_row(name, cell, best_of_two_rates(plan, optimizer)))
    large_batch = [_swept_row(plan.large, optimizer) for optimizer in OPTIMIZERS]
    return "\n\n".join(
        [
            _table("peak rate", one_rate),
            _table("rate of the rest", two_rates),
            _table("peak rate", large_batch),
        ]
    )


def _table(rate: str, rows: list[tuple[str, ...]]) -> str:
    swept = f"loss by {rate}, first seed"
    return table(("optimizer", "steps", swept, "best, mean", "by seed"), rows)


def _swept_row(plan: Plan, optimizer: str) -> tuple[str, ...]:
    swept = losses_by_rate(plan.trials.measure(plan.sweep(optimizer)))
    return _row(OPTIMIZERS[optimizer], swept, best(plan, optimizer))


def _row(name: str, swept: str, curves: Mapping[LanguageTrial, Curve]) -> tuple[str, ...]:
    steps = str(next(iter(curves)).steps)
    return name, steps, swept, *mean_and_seeds([curve[steps] for curve in curves.values()])


def draw(plan: Plan) -> Figure:
    def arms(best_of: Callable[[str], Mapping[LanguageTrial, Curve]]) -> dict[str, Any]:
        return {
            name: (COLORS[optimizer], list(best_of(optimizer).values()))
            for optimizer, name in OPTIMIZERS.items()
        }

    figure, (one_rate, two_rates, large_batch) = panels(3)
    longest = {
        f"Muon, {plan.longer_steps} steps": (MORE_COLORS[1], list(longer(plan).values())),
    }
    one = arms(partial(best, plan)) | longest
    draw_curves(one_rate, one, ylabel=LOSS, title=_title("one rate", plan))
    two = arms(partial(best_of_two_rates, plan))
    draw_curves(two_rates, two, title=_title("two rates", plan))
    large = arms(partial(best, plan.large))
    draw_curves(large_batch, large, title=_title("one rate", plan.large))
    for axes in (one_rate, two_rates, large_batch):
        axes.set(ylim=(None, 2.4))
    return figure


def _title(rates: str, plan: Plan) -> str:
    return f"{rates}, {plan.batch_size * LanguageTrial.context:,} bytes a step"


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"steps_to_adamw.png": draw})
