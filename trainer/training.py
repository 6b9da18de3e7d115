"""The training loop for any Flax model and batches, with logs, checkpoints and resume."""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from trainer.devices import ONE_DEVICE, Devices
from trainer.errors import DivergenceError, StoppedError, UsageError
from trainer.interrupts import Interrupts
from trainer.optimizers import OptimizerConfig, learning_rate_schedule
from trainer.records.checkpoints import Checkpoints
from trainer.records.metrics import Metrics
from trainer.records.plots import plot_loss
from trainer.records.progress import Progress, TrainingProgress
from trainer.records.run_folder import RunFolder
from trainer.task import Batch, Measured, Result, Task


@dataclass(frozen=True)
class RunConfig:
    """How long to train, and what to save."""

    steps: int = 500
    """Updates in the whole run."""
    seed: int = 0
    """Seed of the weights, the order of the data and the sample."""
    eval_every: int = 100
    """Steps between held-out losses; the last step always has one."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always has one."""
    out: Path | None = None
    """Folder for all output. Default: under runs/, named by the settings."""
    resume: bool = False
    """Continue from the newest checkpoint in --out."""
    overwrite: bool = False
    """Remove the run that is in --out."""
    stop_at: int | None = None
    """Save and stop after this step, as Ctrl-C would; the schedule still spans --steps."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        for option in ("steps", "eval_every", "checkpoint_every", "stop_at"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UsageError(f"--{option.replace('_', '-')} {value}: give at least 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed}: give a number from 0 to 2³² − 1")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other; give one")


def fit(
    task: Task, optimizer: OptimizerConfig, run: RunConfig, devices: Devices = ONE_DEVICE
) -> Result:
    """Trains a model, or resumes its training, and writes a run folder.

    On one machine, two runs with the same settings give the same weights to the last bit, even if
    one of them was stopped and resumed. With several processes, all compute and only the first
    writes.

    Raises:
        UsageError: the folder does not allow what `run` asks for; nothing was changed.
        StoppedError: a signal came, or `stop_at` was reached; a checkpoint was saved.
        DivergenceError: the loss is not finite.
    """
    quiet = run.quiet or not devices.first
    with (
        TrainingProgress(run.steps, task.unit, quiet=quiet) as progress,
        Interrupts() as interrupts,
    ):
        running = by_steps(task, optimizer, run, devices, progress, interrupts)
        return take_turns([running])[0]


def take_turns(running: Sequence[Generator[None, None, Result]]) -> list[Result]:
    """Advances runs by a step each until all have ended.

    Raises:
        StoppedError: one of the runs was stopped. Raised after all have ended.
    """
    results: dict[int, Result] = {}
    stopped: list[StoppedError] = []
    left = dict(enumerate(running))
    while left:
        for index, run in list(left.items()):
            try:
                next(run)
                continue
            except StopIteration as end:
                results[index] = end.value
            except StoppedError as error:
                stopped.append(error)
            del left[index]
    if stopped:
        raise stopped[0]
    return [results[index] for index in range(len(running))]


def by_steps(
    task: Task,
    optimizer: OptimizerConfig,
    run: RunConfig,
    devices: Devices,
    progress: Progress,
    interrupts: Interrupts,
) -> Generator[None, None, Result]:
    """Does what `fit` does, and yields after every step, so that several runs can take turns."""
    began = time.monotonic()
    settings = _settings(task, optimizer, run)
    title, described = f"{optimizer.optimizer} on {task.data}", _described(task, optimizer, run)
    # Before anything is written: this raises if the mesh does not divide a batch evenly.
    held_out = [devices.place_batch(batch) for batch in task.held_out]
    shared = RunFolder(run.out or _default_folder(task, optimizer, settings))
    folder = shared if devices.first else RunFolder(Path(tempfile.mkdtemp()))
    if run.resume:
        shared.check_same(settings)
    else:
        folder.begin(settings, overwrite=run.overwrite)
    devices.wait("the folder is ready")
    nnx.update(task.model, devices.place(nnx.state(task.model)))
    transform = task.make_optimizer(optimizer, run.steps)
    graph, state = nnx.split((task.model, nnx.Optimizer(task.model, transform, wrt=nnx.Param)))
    state = devices.place(state)
    train_step, evaluate = _compiled(graph, task, devices.shardings(state))
    checkpoints = Checkpoints(shared.checkpoints, devices)

    def measure_held_out(state: nnx.State) -> list[Measured]:
        return [devices.settle(evaluate(state, batch)) for batch in held_out]

    start, state = checkpoints.restore(state, task.batches) if run.resume else (0, state)
    if start > run.steps:
        raise UsageError(f"--steps {run.steps}: the run has done {start} already; give more")
    with Metrics(folder, start=start) as metrics:
        begins = f"going on after step {start}" if run.resume else "writing"
        progress.begin(start, title, [described, task.amount, f"{begins} in {folder.path}"])
        log = _StepLog(metrics, progress, learning_rate_schedule(optimizer, run.steps), task)
        step, limit = start, min(run.steps, run.stop_at or run.steps)
        while step < limit and not devices.agree(step, bool(interrupts.received)):
            batch = devices.place_batch(next(task.batches))
            state, measured = devices.settle(train_step(state, batch))
            step += 1
            log.add(step, measured)
            if step % run.eval_every == 0:
                log.add_held_out(step, measure_held_out(state))
            if step % run.checkpoint_every == 0:
                log.write_pending()
                checkpoints.save(step, state, task.batches)
            yield
        log.write_pending()
        if step == run.steps and step not in metrics.series("held_out/loss"):
            log.add_held_out(step, measure_held_out(state))
        checkpoint = checkpoints.save(step, state, task.batches)
    curves = metrics.series("train/loss"), metrics.series("held_out/loss")
    if curves[0]:
        plot_loss(folder.plot, *curves, title=title, settings=described, unit=task.loss_unit)
    if step < run.steps:
        by = interrupts.received.name if interrupts.received else "--stop-at"
        raise StoppedError(
            f"stopped by {by} after step {step} of {run.steps}; saved {checkpoint}",
            exit_status=128 + interrupts.received if interrupts.received else 0,
        )
    model, _ = nnx.merge(graph, devices.gather(state))
    seconds = time.monotonic() - began
    return Result(model, *curves, metrics.series, folder, checkpoint, seconds)


def _compiled(
    graph: Any, task: Task, shardings: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the compiled training step and evaluation, on one pytree of state.

    Args:
        shardings: of the state, which a step preserves; None lets JAX choose.
    """

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def train_step(state: nnx.State, batch: Batch) -> tuple[nnx.State, Measured]:
        model, optimizer = nnx.merge(graph, state)
        (loss, measured), gradients = nnx.value_and_grad(task.objective, has_aux=True)(model, batch)
        optimizer.update(model, gradients, **task.update_arguments(measured))
        return nnx.state((model, optimizer)), {"loss": loss, **measured}

    @jax.jit
    def evaluate(state: nnx.State, batch: Batch) -> Measured:
        model, _ = nnx.merge(graph, state)
        loss, measured = task.objective(model, batch)
        return {"loss": loss, **measured}

    return train_step, evaluate


class _StepLog:
    """Writes what each step measured, one step late, so that the device never waits for it."""

    def __init__(
        self, metrics: Metrics, progress: Progress, schedule: optax.Schedule, task: Task
    ) -> None:
        self._metrics, self._progress = metrics, progress
        self._schedule, self._items = schedule, task.items
        self._pending: tuple[int, Measured] | None = None
        self._clock = time.monotonic()

    def add(self, step: int, measured: Measured) -> None:
        """Takes one step's measurements and writes those of the step before."""
        self.write_pending()
        self._pending = (step, measured)

    def write_pending(self) -> None:
        if self._pending is None:
            return
        step, measured = self._pending
        self._pending = None
        values = {f"train/{name}": value for name, value in _numbers(measured).items()}
        loss = values["train/loss"]
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} at step {step}; try a smaller --learning-rate"
            )
        now = time.monotonic()
        per_second, self._clock = self._items / (now - self._clock), now
        rate = float(jnp.asarray(self._schedule(step - 1)))
        self._metrics.write(
            step, {**values, "learning_rate": rate, "items_per_second": round(per_second, 1)}
        )
        self._progress.trained(step, loss, per_second)

    def add_held_out(self, step: int, measured: list[Measured]) -> None:
        """Writes the mean over held-out batches; its time does not count in the speed of a step."""
        self.write_pending()
        numbers = [_numbers(of_batch) for of_batch in measured]
        means = {name: float(np.mean([n[name] for n in numbers])) for name in numbers[0]}
        self._metrics.write(step, {f"held_out/{name}": mean for name, mean in means.items()})
        self._progress.evaluated(step, means["loss"])
        self._clock = time.monotonic()


def _numbers(measured: Measured) -> dict[str, float]:
    """Returns every number by its path, followed by the index for a number in an array."""
    numbers = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(measured):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for index, number in np.ndenumerate(leaf):
            numbers["/".join([name, *map(str, index)])] = float(number)
    return numbers


def _settings(task: Task, optimizer: OptimizerConfig, run: RunConfig) -> dict[str, Any]:
    """Returns all settings that determine the weights of the run."""
    chosen = {
        **task.settings,
        **asdict(optimizer),
        "learning_rate": optimizer.peak,
        "weight_decay": optimizer.decay,
        "seed": run.seed,
    }
    if optimizer.schedule != "constant":  # with a constant rate, a resumed run may have more steps
        chosen["steps"] = run.steps
    return chosen


def _default_folder(task: Task, optimizer: OptimizerConfig, settings: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"{task.name}-{optimizer.optimizer}-{digest[:8]}"


def _described(task: Task, optimizer: OptimizerConfig, run: RunConfig) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(task.model, nnx.Param)))
    return (
        f"{parameters / 1e6:.2f} M parameters, {task.items:,} {task.unit} a step, "
        f"learning rate {optimizer.peak:g} ({optimizer.schedule}), "
        f"weight decay {optimizer.decay:g}, seed {run.seed}"
    )
