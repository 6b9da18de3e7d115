"""Classification of images with any model: the task, its accuracy and the final report."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float
from rich.console import Console

from trainer.data.batches import shuffled_batches
from trainer.data.images import Images, Labelled, read_images
from trainer.devices import DeviceConfig, Devices
from trainer.errors import UsageError
from trainer.optimizers import OptimizerConfig
from trainer.records.plots import plot_accuracy
from trainer.task import Batch, Measured, Result, Task
from trainer.training import RunConfig, fit

MEASURED_AT_ONCE = 400  # held-out images, at most
PLOT = "accuracy.png"

Build = Callable[[tuple[int, int, int], int, nnx.Rngs], nnx.Module]
"""Makes the model from the shape of an image and the number of classes."""


@dataclass(frozen=True)
class ImageConfig:
    """The images, and the accuracy to reach."""

    data_dir: Path | None = None
    """Fashion-MNIST's or MNIST's four gzip files, or CIFAR-10's binary version. Default:
    scikit-learn's digits."""
    batch_size: int = 64
    """Images in a step."""
    target_accuracy: float = 0.97
    """Target share of correctly classified held-out images; the report says when it was reached."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: give at least 1")
        if not 0 < self.target_accuracy <= 1:
            raise UsageError(f"--target-accuracy {self.target_accuracy}: give a share, above 0")


@dataclass(frozen=True)
class ImageResult:
    """A trained classifier."""

    run: Result
    accuracy: dict[int, float]
    """Held-out accuracy, by step."""
    steps_an_epoch: float
    step_seconds: float
    """Median, without compilation and evaluation; NaN where no step was logged."""

    def first_step_at(self, target: float) -> int | None:
        """Returns the first measured step with an accuracy of at least `target`."""
        return next((step for step, share in self.accuracy.items() if share >= target), None)


def train_classifier(
    build: Build,
    *,
    name: str,
    settings: Mapping[str, Any],
    images: ImageConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    devices: DeviceConfig,
) -> ImageResult:
    """Trains the model that `build` makes.

    Args:
        name: one word for the name of the run folder.
        settings: of the model; a resumed run must have the same.
    """
    if optimizer.optimizer == "muon-clip":
        raise UsageError(
            "--optimizer muon-clip clips attention, and this model has none; give muon"
        )
    started = Devices.start(devices)
    data = read_images(images.data_dir)
    task = Task(
        name=name,
        data=data.name,
        amount=data.amount,
        model=nnx.jit(partial(build, data.train.images.shape[1:], data.classes))(
            nnx.Rngs(run.seed)
        ),
        objective=_objective(data),
        batches=shuffled_batches(data.train, batch_size=images.batch_size, seed=run.seed),
        held_out=held_out_batches(data.held_out),
        items=images.batch_size,
        unit="images",
        loss_unit="nats per image",
        settings={
            **settings,
            "batch_size": images.batch_size,
            "images": f"sha256 {data.digest[:12]}",
        },
    )
    result = fit(task, optimizer, run, started)
    rates = result.series("items_per_second").values() or [math.nan]
    trained = ImageResult(
        result,
        result.series("held_out/accuracy"),
        steps_an_epoch=len(data.train) / images.batch_size,
        step_seconds=images.batch_size / statistics.median(rates),
    )
    if started.first:
        plot_accuracy(
            result.folder.path / PLOT,
            {step / trained.steps_an_epoch: share for step, share in trained.accuracy.items()},
            target=images.target_accuracy,
            title=f"{optimizer.optimizer} on {data.name}",
        )
    return trained


def held_out_batches(held_out: Labelled) -> list[Batch]:
    """Returns all images in equal batches, as large as possible, so that JAX compiles only once."""
    count = len(held_out)
    size = max(each for each in range(1, MEASURED_AT_ONCE + 1) if count % each == 0)
    return [
        {"image": held_out.images[at : at + size], "label": held_out.labels[at : at + size]}
        for at in range(0, count, size)
    ]


def _objective(data: Images) -> Callable[[Any, Batch], tuple[Float[Array, ""], Measured]]:
    """Returns the objective, which normalises images to mean 0 and standard deviation 1."""
    mean, deviation = float(data.train.images.mean()), float(data.train.images.std())

    def objective(model: Any, batch: Batch) -> tuple[Float[Array, ""], Measured]:
        logits = model((batch["image"].astype(jnp.float32) - mean) / deviation)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    return objective


def report(result: ImageResult, target: float) -> None:
    """Prints the last accuracy, when `target` was reached, and where the files are."""
    console = Console(highlight=False)
    run = result.run
    last = max(result.accuracy)
    console.print(
        f"held-out accuracy [bold]{result.accuracy[last]:.4f}[/] after "
        f"{last / result.steps_an_epoch:.1f} epochs = {last} steps; this process trained for "
        f"{run.seconds:.0f} s",
        soft_wrap=True,
    )
    reached = result.first_step_at(target)
    if reached is None:
        console.print(
            f"accuracy {target:g} was not reached; best {max(result.accuracy.values()):.4f}"
        )
    else:
        console.print(
            f"accuracy {target:g} after {reached / result.steps_an_epoch:.1f} epochs = {reached} "
            f"steps of {1000 * result.step_seconds:.0f} ms = {reached * result.step_seconds:.1f} s",
            soft_wrap=True,
        )
    files = {
        "accuracy": run.folder.path / PLOT,
        "loss curve": run.folder.plot,
        "metrics": run.folder.metrics,
        "TensorBoard": run.folder.tensorboard,
        "checkpoint": run.checkpoint,
    }
    for what, where in files.items():
        console.print(f"  {what:<12}{where}", markup=False, soft_wrap=True)
