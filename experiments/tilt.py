"""Is an orthogonal update the best one? Compares updates whose singular values rise or fall.

The update has the singular vectors of the momentum. Its singular values change linearly with their
rank, from `first` in the momentum's largest direction to `last` in its smallest. Muon has 1 and 1.

python -m experiments.tilt run     # a quarter of an hour; skips saved trials
python -m experiments.tilt report  # the table
"""

import functools
import statistics
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import muon_jax
from experiments.ablation import RATE, compared
from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial, held_out_loss
from experiments.report import table
from experiments.sweeps import final_loss
from experiments.trials import Measured, Trials
from trainer.optimizers import MUON_MOMENTUM, OptimizerConfig, learning_rate_schedule

_SMALLEST = 1e-4  # relative to the largest singular value; float32 loses smaller ones in XXᵀ
_multiply = functools.partial(jnp.matmul, precision="highest")


@dataclass(frozen=True)
class Tilted:
    """An orthogonalizer whose results have singular values from `first` to `last`."""

    first: float
    """Singular value in the direction where the momentum is largest."""
    last: float

    def __call__(self, matrices: jax.Array) -> jax.Array:
        size = jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)
        matrices = matrices / jnp.where(size == 0, 1, size)
        squares, vectors = jnp.linalg.eigh(_multiply(matrices, matrices.mT))  # ascending
        least = jnp.square(_SMALLEST) * jnp.where(size[..., 0] == 0, 1, squares[..., -1:])
        wanted = jnp.linspace(self.last, self.first, squares.shape[-1])[None]
        factors = wanted / jnp.sqrt(jnp.maximum(squares, least))
        return _multiply(_multiply(vectors * factors[..., None, :], vectors.mT), matrices)


@dataclass(frozen=True)
class TiltTrial(LanguageTrial):
    """A run of Muon with `Tilted` updates."""

    first: float = 1.0
    last: float = 1.0

    def make_optimizer(
        self, config: OptimizerConfig, steps: int
    ) -> optax.GradientTransformationExtraArgs:
        schedule = learning_rate_schedule(config, steps)
        return muon_jax.muon(
            schedule,
            weight_decay=config.decay,
            momentum=MUON_MOMENTUM,
            orthogonalizer=Tilted(self.first, self.last),
            scale="match_rms",
            weight_decay_mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
            fallback_learning_rate=schedule,
        )


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """All tilts at one rate, on the same seeds; the first is the reference."""

    tilts: tuple[tuple[float, float], ...] = (
        (1.0, 1.0),
        (1.15, 0.85),
        (0.85, 1.15),
        (0.6, 1.4),
        (0.3, 1.7),
    )
    steps: int = 400
    width: int = 128
    layers: int = 4
    results: Path = RESULTS / "tilt.jsonl"

    @property
    def trials(self) -> Trials[TiltTrial]:
        return Trials(TiltTrial, measure, self.results, self.workers)

    def runs(self, tilt: tuple[float, float]) -> list[TiltTrial]:
        first, last = tilt
        return [
            TiltTrial("muon", RATE, self.steps, seed, first=first, last=last, **self.shared)
            for seed in self.seeds
        ]


def measure(trial: TiltTrial) -> Measured:
    """Returns the held-out loss by step, in nats per byte."""
    return held_out_loss(trial, make_optimizer=trial.make_optimizer)


def run(plan: Plan) -> None:
    plan.trials.measure(trial for tilt in plan.tilts for trial in plan.runs(tilt))


def report(plan: Plan) -> str:
    """Tabulates the final losses, and their differences from the reference on the same seeds."""
    reference, *others = plan.tilts
    baseline = losses(plan, reference)
    return table(
        ("largest direction", "smallest", "held-out loss, mean", "above the first row", "by seed"),
        [
            (*shown(reference), f"{statistics.mean(baseline):.4f}", "", ""),
            *((*shown(tilt), *compared(losses(plan, tilt), baseline)) for tilt in others),
        ],
    )


def shown(tilt: tuple[float, float]) -> tuple[str, str]:
    return f"{tilt[0]:g}", f"{tilt[1]:g}"


def losses(plan: Plan, tilt: tuple[float, float]) -> list[float]:
    return list(map(final_loss, plan.trials.measure(plan.runs(tilt)).values()))


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report)
