"""Which trains better: Muon with AdamW, or steepest descent with a norm for every parameter?

python -m experiments.one_framework run     # 6 minutes on one core; skips saved trials
python -m experiments.one_framework report  # the tables and the figure
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float
from matplotlib.figure import Figure

import muon_jax
from experiments.command_line import RESULTS, main
from experiments.curves import by_step
from experiments.language import LanguagePlan, LanguageTrial
from experiments.language import run as train
from experiments.report import (
    LOSS,
    MORE_COLORS,
    draw_curves,
    draw_sweep,
    mean_and_seeds,
    panels,
    table,
)
from experiments.sweeps import best_trial, best_trials, final_loss
from experiments.trials import Measured, Trials
from trainer.optimizers import (
    MUON_MOMENTUM,
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
    named_orthogonalizer,
)

MOMENTUM = 0.9  # for parameters that Muon does not train; the same as AdamW's b1
HEAD = muon_jax.MatrixAxes(rows=0, cols=1)

# Optimizers of the parameters that Muon does not train: embedding, head and norm scales.
ARMS = {
    "adamw": "AdamW",
    "momentum-rms": "momentum over its RMS",
    "norms": "a norm for each role",
}


@dataclass(frozen=True)
class ArmTrial(LanguageTrial):
    """A run of Muon whose fallback is one of `ARMS`."""

    arm: str = "adamw"


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """The fallback's learning rate is swept on the first seed; then Muon's, at the best of these.

    The best pair of learning rates of each arm runs on all seeds.
    """

    arms: tuple[str, ...] = tuple(ARMS)
    fallback_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    matrix_rates: tuple[float, ...] = (1e-2, 5e-3, 2e-2, 4e-2)
    """Muon uses the first value while the fallback's learning rate is swept."""
    steps: int = 300
    evaluations: int = 6
    results: Path = RESULTS / "one_framework.jsonl"

    @property
    def trials(self) -> Trials[ArmTrial]:
        return Trials(ArmTrial, measured, self.results, self.workers)

    def sweep(self, arm: str) -> list[ArmTrial]:
        return [
            ArmTrial(
                "muon",
                self.matrix_rates[0],
                self.steps,
                self.seeds[0],
                evaluations=self.evaluations,
                fallback_learning_rate=rate,
                arm=arm,
                **self.shared,
            )
            for rate in self.fallback_rates
        ]


def measured(trial: ArmTrial) -> Measured:
    """Returns the held-out loss by step, and the size of the state."""
    result = train(trial, make_optimizer=partial(arm_optimizer, trial.arm))
    weights = nnx.state(result.run.model, nnx.Param)
    return {
        "held_out_loss": by_step(result.run.held_out_loss),
        "copies": round(copies(trial.arm, weights), 4),
    }


def copies(arm: str, weights: optax.Params) -> float:
    """Returns the bytes of an arm's state, divided by the bytes of the parameters."""
    state = jax.eval_shape(arm_optimizer(arm, OptimizerConfig(), steps=1).init, weights)
    return bytes_of(state) / bytes_of(weights)


def bytes_of(tree: optax.Params) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def arm_optimizer(arm: str, config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns Muon with the fallback of an arm; all arms have the same weight decay and mask."""
    if arm == "adamw":
        return make_optimizer(config, steps)
    peak = config.fallback_learning_rate

    def optimizer(direction: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(
            direction,
            optax.add_decayed_weights(config.decay, mask=tables),
            optax.scale_by_learning_rate(learning_rate_schedule(config, steps, peak=peak)),
        )

    polar = named_orthogonalizer(config.orthogonalizer)
    muon = partial(
        muon_jax.muon,
        learning_rate_schedule(config, steps),
        weight_decay=config.decay,
        momentum=MUON_MOMENTUM,
        orthogonalizer=polar,
        scale="match_rms",
    )
    if arm == "momentum-rms":
        return muon(fallback=optimizer(muon_jax.scale_by_momentum_rms(momentum=MOMENTUM)))
    return muon(
        rules=[muon_jax.Rule("*/embedding", "rows"), muon_jax.Rule("*/head/kernel", "head")],
        transforms={
            "rows": optimizer(along_momentum(rows_of_unit_rms)),
            "head": optimizer(
                muon_jax.scale_by_muon(
                    momentum=MUON_MOMENTUM, axes=HEAD, scale="spectral", orthogonalizer=polar
                )
            ),
        },
        fallback=optimizer(along_momentum(jnp.sign)),
    )


def tables(params: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def along_momentum(dual: Callable[[Array], Array]) -> optax.GradientTransformation:
    """Steps along `dual(momentum)`, the steepest direction under some norm."""
    return optax.chain(
        optax.ema(MOMENTUM, debias=False),
        optax.stateless(lambda updates, params: jax.tree.map(dual, updates)),
    )


def rows_of_unit_rms(matrix: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
    """Returns the steepest direction under the largest RMS of a row, which is the l1 → RMS norm.

    Rows of tokens that have never occurred stay zero.
    """
    rms = jnp.sqrt(jnp.mean(jnp.square(matrix), axis=1, keepdims=True))
    return matrix / jnp.where(rms == 0, 1, rms)


def run(plan: Plan) -> None:
    plan.trials.measure(trial for arm in plan.arms for trial in plan.sweep(arm))
    plan.trials.measure(trial for arm in plan.arms for trial in around(plan, arm))
    plan.trials.measure(trial for arm in plan.arms for trial in best(plan, arm))


def losses_of(plan: Plan, trials: list[ArmTrial]) -> dict[ArmTrial, float]:
    return {trial: final_loss(each) for trial, each in plan.trials.measure(trials).items()}


def around(plan: Plan, arm: str) -> list[ArmTrial]:
    """Returns the trials of all matrix rates at the best rate of the fallback."""
    chosen = best_trial(plan.trials, plan.sweep(arm))
    return [replace(chosen, learning_rate=rate) for rate in plan.matrix_rates]


def best(plan: Plan, arm: str) -> list[ArmTrial]:
    """Returns the trials of the best two rates on all seeds."""
    return best_trials(plan.trials, around(plan, arm), plan.seeds)


def report(plan: Plan) -> str:
    return f"{best_table(plan)}\n\n{sweep_table(plan)}"


def best_table(plan: Plan) -> str:
    rows = []
    for arm in plan.arms:
        runs = plan.trials.measure(best(plan, arm))
        trial, found = next(iter(runs.items()))
        rows.append(
            (
                ARMS[arm],
                f"{trial.fallback_learning_rate:g}",
                f"{trial.learning_rate:g}",
                *mean_and_seeds([final_loss(each) for each in runs.values()]),
                f"{found['copies']:.2f}",
            )
        )
    head = ("the rest of the model", "its best rate", "Muon's", "held-out loss, mean", "by seed")
    return table((*head, "state, in copies of the parameters"), rows)


def sweep_table(plan: Plan) -> str:
    rates = [f"{rate:g}" for rate in plan.fallback_rates]
    matrix_rates = [f"Muon at {rate:g}" for rate in plan.matrix_rates[1:]]
    rows = []
    for arm in plan.arms:
        losses = losses_of(plan, [*plan.sweep(arm), *around(plan, arm)[1:]])
        rows.append((ARMS[arm], *(f"{loss:.4f}" for loss in losses.values())))
    return table(("the rest of the model", *rates, *matrix_rates), rows)


def draw(plan: Plan) -> Figure:
    figure, (curves, rates) = panels(2)
    by_step, by_rate = {}, {}
    for color, arm in zip(MORE_COLORS, plan.arms, strict=False):
        runs = plan.trials.measure(best(plan, arm)).values()
        by_step[ARMS[arm]] = color, [found["held_out_loss"] for found in runs]
        losses = losses_of(plan, plan.sweep(arm))
        swept = {trial.fallback_learning_rate: loss for trial, loss in losses.items()}
        by_rate[ARMS[arm]] = color, swept
    draw_curves(curves, by_step, legend=False, ylabel=LOSS, title="best rates, all seeds")
    draw_sweep(
        rates,
        by_rate,
        ticks=plan.fallback_rates,
        xlabel="peak rate of all but Muon",
        title="at the end, first seed",
    )
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"one_framework.png": draw})
