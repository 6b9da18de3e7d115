"""How fast does a convolutional network learn with Muon, AdamW and SGD, each tuned?

python -m experiments.images run     # skips saved trials
python -m experiments.images report  # the tables and the figure

Fashion-MNIST comes from the Debian package dataset-fashion-mnist; --data digits runs without it.
"""

import math
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.contenders import Contender, sweep_table
from experiments.curves import by_step, steps_to
from experiments.report import COLORS, MORE_COLORS, draw_curves, mean_and_seeds, panels, table
from experiments.sweeps import ORTHOGONALIZER, best_on_seeds, best_trials
from experiments.trials import Measured, Trials
from trainer.classification import ImageConfig
from trainer.errors import DivergenceError
from trainer.models.convolutions import ConvolutionConfig
from trainer.optimizers import OptimizerConfig
from trainer.programs.images import Config, train
from trainer.training import RunConfig

WARMUP = 20
ERROR_TICKS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1)

CONTENDERS = {
    "muon": Contender("Muon", 2e-3, COLORS["muon"]),
    "adamw": Contender("AdamW", 1e-3, COLORS["adamw"]),
    "sgd-nesterov": Contender("SGD, Nesterov", 0.02, MORE_COLORS[0]),
}


@dataclass(frozen=True)
class ImageTrial:
    """One run; all other settings are the trainer's defaults."""

    data: str
    optimizer: str
    learning_rate: float
    steps: int
    seed: int
    eval_every: int
    batch_size: int
    width: int
    stem_stride: int
    stages: int = 3


@dataclass(frozen=True)
class DataSet:
    """Settings of the runs on a data set, and the share of errors that they should reach."""

    epoch: int
    epochs: int
    batch_size: int
    evaluations: int
    stem_stride: int
    error: float

    @property
    def steps(self) -> int:
        return self.epochs * self.epoch // self.batch_size


DATA = {
    "digits": DataSet(1437, 10, 64, evaluations=20, stem_stride=1, error=0.03),
    "fashion-mnist": DataSet(60_000, 2, 128, evaluations=10, stem_stride=4, error=0.15),
}


@dataclass(frozen=True)
class Plan:
    """Learning rates are swept on the first seed; each optimizer's best runs on all seeds."""

    data: tuple[str, ...] = tuple(DATA)
    fashion_mnist: Path = Path("/usr/share/datasets/fashion-mnist")
    rates: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 8
    stages: int = 3
    results: Path = RESULTS / "images.jsonl"
    workers: int = 1

    @property
    def trials(self) -> Trials[ImageTrial]:
        return Trials(ImageTrial, partial(measure, self.fashion_mnist), self.results, self.workers)

    def sweep(self, data: str, optimizer: str) -> list[ImageTrial]:
        chosen = DATA[data]
        return [
            ImageTrial(
                data,
                optimizer,
                rate,
                chosen.steps,
                self.seeds[0],
                eval_every=max(1, chosen.steps // chosen.evaluations),
                batch_size=chosen.batch_size,
                width=self.width,
                stem_stride=chosen.stem_stride,
                stages=self.stages,
            )
            for rate in CONTENDERS[optimizer].rates(self.rates)
        ]


def measure(fashion_mnist: Path, trial: ImageTrial) -> Measured:
    """Trains once; returns the share of errors and the loss on held-out images, by step."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            images=ImageConfig(
                data_dir=None if trial.data == "digits" else fashion_mnist,
                batch_size=trial.batch_size,
            ),
            network=ConvolutionConfig(trial.width, trial.stages, trial.stem_stride),
            optimizer=OptimizerConfig(
                optimizer=trial.optimizer,
                learning_rate=trial.learning_rate,
                warmup_steps=WARMUP,
                orthogonalizer=ORTHOGONALIZER,
            ),
            run=RunConfig(
                steps=trial.steps,
                seed=trial.seed,
                eval_every=trial.eval_every,
                checkpoint_every=trial.steps,
                out=Path(folder) / "run",
                quiet=True,
            ),
        )
        try:
            result = train(config)
        except DivergenceError:
            return {"error": {str(trial.steps): 1.0}, "loss": {str(trial.steps): math.inf}}
    return {
        "error": by_step({step: 1 - share for step, share in result.accuracy.items()}),
        "loss": by_step(result.run.held_out_loss),
        "step_seconds": result.step_seconds,
    }


def run(plan: Plan) -> None:
    sides = [(data, optimizer) for data in plan.data for optimizer in CONTENDERS]
    plan.trials.measure(trial for side in sides for trial in plan.sweep(*side))
    plan.trials.measure(
        trial
        for side in sides
        for trial in best_trials(plan.trials, plan.sweep(*side), plan.seeds, final)
    )


def best_runs(plan: Plan, data: str, optimizer: str) -> dict[ImageTrial, Measured]:
    """Returns the results at the best learning rate on all seeds."""
    return best_on_seeds(plan.trials, plan.sweep(data, optimizer), plan.seeds, final)


def final(measured: Measured) -> tuple[float, float]:
    """Returns the final share of errors, and the final loss, which breaks ties."""
    error, loss = (list(measured[name].values())[-1] for name in ("error", "loss"))
    return error, loss


def report(plan: Plan) -> str:
    return "\n\n".join(
        table for data in plan.data for table in (_best_table(plan, data), _sweep_table(plan, data))
    )


def _best_table(plan: Plan, data: str) -> str:
    chosen = DATA[data]
    rows = []
    for optimizer, contender in CONTENDERS.items():
        runs = best_runs(plan, data, optimizer)
        errors = [final(measured)[0] for measured in runs.values()]
        steps = [steps_to(chosen.error, measured["error"]) for measured in runs.values()]
        seconds = statistics.median(measured["step_seconds"] for measured in runs.values())
        mean = None if None in steps else statistics.mean(filter(None, steps))
        rows.append(
            (
                contender.name,
                f"{next(iter(runs)).learning_rate:g}",
                *mean_and_seeds(errors, ".2%"),
                _shown(mean),
                ", ".join(map(_shown, steps)),
                _shown(mean, chosen.batch_size / chosen.epoch, digits=2),
                _shown(mean, seconds, digits=1),
            )
        )
    head = (data, "best peak rate", "errors at the end", "by seed", f"steps to {chosen.error:.0%}")
    return table((*head, "by seed", "epochs", "seconds"), rows)


def _shown(steps: float | None, of_one: float = 1, *, digits: int = 0) -> str:
    return "never" if steps is None else f"{steps * of_one:.{digits}f}"


def _sweep_table(plan: Plan, data: str) -> str:
    swept = {
        optimizer: [
            f"{final(measured)[0]:.2%}"
            for measured in plan.trials.measure(plan.sweep(data, optimizer)).values()
        ]
        for optimizer in CONTENDERS
    }
    return sweep_table(f"errors, {data}, first seed", CONTENDERS, swept)


def draw(plan: Plan) -> Figure:
    figure, axes = panels(len(plan.data))
    for data, panel in zip(plan.data, axes, strict=True):
        curves = {
            contender.name: (
                contender.color,
                [each["error"] for each in best_runs(plan, data, optimizer).values()],
            )
            for optimizer, contender in CONTENDERS.items()
        }
        draw_curves(panel, curves, ylabel="errors, held out", yscale="log", title=data)
        panel.axhline(DATA[data].error, color="#555555", linewidth=0.9, linestyle="--")
        panel.minorticks_off()
        low, high = panel.get_ylim()
        shown = [share for share in ERROR_TICKS if low <= share <= high]
        panel.set_yticks(shown, [f"{share:.0%}" for share in shown])
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"images.png": draw})
