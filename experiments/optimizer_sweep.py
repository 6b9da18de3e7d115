"""Compares loss and cost of eight optimizers on a language model, each at its best learning rate.

python -m experiments.optimizer_sweep run     # skips saved trials
python -m experiments.optimizer_sweep report  # the tables and the figure
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx
from matplotlib.figure import Figure

import muon_jax
from experiments.command_line import RESULTS, main
from experiments.contenders import Contender, sweep_table
from experiments.curves import by_step, mean_curve, steps_to
from experiments.language import LanguagePlan, LanguageTrial
from experiments.language import run as run_language
from experiments.report import (
    COLORS,
    LOSS,
    MORE_COLORS,
    draw_curves,
    draw_sweep,
    listed,
    panels,
    table,
)
from experiments.sweeps import best_on_seeds, best_trials, final_loss
from experiments.trials import Measured, Trials
from trainer.errors import DivergenceError, UsageError
from trainer.optimizers import OptimizerConfig, make_optimizer, named_orthogonalizer

CONTENDERS = {
    "sgd": Contender("SGD", 0.033, MORE_COLORS[3]),
    "sgd-momentum": Contender("SGD, momentum", 0.03, MORE_COLORS[2]),
    "adagrad": Contender("Adagrad", 0.03, MORE_COLORS[4]),
    "rmsprop": Contender("RMSProp", 9e-4, MORE_COLORS[1]),
    "adam": Contender("Adam", 1e-3, MORE_COLORS[0]),
    "adamw": Contender("AdamW", 1e-3, COLORS["adamw"]),
    "muon": Contender("Muon", 2e-3, COLORS["muon"]),
    "muon-clip": Contender("MuonClip", 2e-3, COLORS["optax-muon"]),
}
MUONS = ("muon", "muon-clip")
REFERENCE = "adamw"


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Learning rates are swept on the first seed; each optimizer's best runs on all seeds."""

    steps: int = 300
    """Steps of every run, with a warm-up and a cosine decay to 0."""
    rates: int = 4
    """Number of learning rates for each optimizer."""
    batch_size: int = 16
    context: int = 64
    results: Path = RESULTS / "optimizer_sweep.jsonl"
    """File of the results, one line of JSON for each trial."""

    def __post_init__(self) -> None:
        if min(self.steps, self.rates, len(self.seeds)) < 1:
            raise UsageError("give at least one step, rate and seed")

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, measure, self.results, self.workers)

    def sweep(self, optimizer: str) -> list[LanguageTrial]:
        return [
            LanguageTrial(
                optimizer,
                rate,
                self.steps,
                self.seeds[0],
                context=self.context,
                **self.shared,
            )
            for rate in CONTENDERS[optimizer].rates(self.rates)
        ]


def measure(trial: LanguageTrial) -> Measured:
    """Trains once; returns the held-out loss by step, and what a step costs."""
    try:
        result = run_language(trial).run
    except DivergenceError:
        return {"held_out_loss": {str(trial.steps): math.inf}}
    params = nnx.state(result.model, nnx.Param)
    sizes = {path: leaf.size for path, leaf in nnx.to_flat_state(params)}
    multiplied = sum(size for path, size in sizes.items() if "embed" not in path)
    tokens = trial.batch_size * trial.context
    orthogonalizer = named_orthogonalizer(trial.orthogonalizer)
    explained = muon_jax.explain(
        params, muon_jax.muon(1.0, scale="match_rms", orthogonalizer=orthogonalizer)
    )
    orthogonalized = explained.flops or 0 if trial.optimizer in MUONS else 0
    transform = make_optimizer(OptimizerConfig(trial.optimizer), trial.steps)
    state = jax.tree.leaves(jax.eval_shape(transform.init, params))
    return {
        "held_out_loss": by_step(result.held_out_loss),
        "parameters": sum(sizes.values()),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in state),
        "step_flops": 6 * multiplied * tokens + orthogonalized,
        "step_seconds": tokens / statistics.median(result.series("items_per_second").values()),
    }


def run(plan: Plan) -> None:
    plan.trials.measure(trial for name in CONTENDERS for trial in plan.sweep(name))
    plan.trials.measure(
        trial
        for name in CONTENDERS
        for trial in best_trials(plan.trials, plan.sweep(name), plan.seeds)
    )


def best_runs(plan: Plan, optimizer: str) -> dict[LanguageTrial, Measured]:
    """Returns the results at the best learning rate on all seeds."""
    return best_on_seeds(plan.trials, plan.sweep(optimizer), plan.seeds)


def report(plan: Plan) -> str:
    best = {optimizer: list(best_runs(plan, optimizer).items()) for optimizer in CONTENDERS}
    target = statistics.mean(final_loss(measured) for _, measured in best[REFERENCE])
    spent = plan.steps * best[REFERENCE][0][1]["step_flops"]
    rows = []
    for optimizer, runs in best.items():
        (trial, first), *_ = runs
        measured = [each for _, each in runs]
        losses = [final_loss(each) for each in measured]
        steps = steps_to(target, mean_curve([each["held_out_loss"] for each in measured]))
        seconds = statistics.median(each["step_seconds"] for each in measured)
        rows.append(
            (
                CONTENDERS[optimizer].name,
                f"{trial.learning_rate:g}",
                f"{statistics.mean(losses):.4f}",
                listed((min(losses), max(losses))),
                "not reached" if steps is None else f"{steps:.0f}",
                "not reached" if steps is None else f"{steps * first['step_flops'] / spent:.2f}",
                f"{first['state_bytes'] / first['parameters']:.1f}",
                f"{1000 * seconds:.0f}",
            )
        )
    swept = {
        optimizer: [
            f"{final_loss(measured):.4f}"
            for measured in plan.trials.measure(plan.sweep(optimizer)).values()
        ]
        for optimizer in CONTENDERS
    }
    head = ("optimizer", "best peak rate", "held-out loss", "lowest and highest seed")
    costs = ("steps to AdamW's", "FLOPs to AdamW's", "state, bytes a parameter", "ms a step")
    swept_losses = sweep_table("loss, first seed", CONTENDERS, swept)
    return f"{table((*head, *costs), rows)}\n\n{swept_losses}"


def draw(plan: Plan) -> Figure:
    figure, (curves, rates) = panels(2)
    by_step, by_rate = {}, {}
    for optimizer, contender in CONTENDERS.items():
        best = [each["held_out_loss"] for each in best_runs(plan, optimizer).values()]
        by_step[contender.name] = contender.color, best
        swept = plan.trials.measure(plan.sweep(optimizer))
        losses = {trial.learning_rate: final_loss(each) for trial, each in swept.items()}
        by_rate[contender.name] = contender.color, losses
    draw_curves(curves, by_step, ylabel=LOSS, title="best rate, all seeds")
    draw_sweep(rates, by_rate, legend=False, title="at the end, first seed")
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"optimizer_sweep.png": draw})
