"""The inputs and the results of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax
from flax import nnx
from jaxtyping import Array, Float

from trainer.optimizers import OptimizerConfig, make_optimizer
from trainer.records.run_folder import RunFolder

Batch = Any
Measured = dict[str, Any]
"""Numbers, or trees of arrays, by name; every number in them is logged."""
MakeOptimizer = Callable[[OptimizerConfig, int], optax.GradientTransformation]
Objective = Callable[[Any, Batch], tuple[Float[Array, ""], Measured]]


@dataclass(frozen=True)
class Task:
    """A model, its objective and its data."""

    name: str
    """One word, for the name of the run folder."""
    data: str
    """Where the data came from, in a few words."""
    amount: str
    """The size of the training data and of the held-out data, in one line."""
    model: nnx.Module
    objective: Objective
    """Maps (model, batch) to a mean loss and other mean measurements."""
    batches: Iterator[Batch]
    """Endless; Orbax must be able to save its position, as for grain's iterators."""
    held_out: Sequence[Batch]
    items: int
    """Number of items in one batch, for the speed shown."""
    unit: str
    """Name of an item, in the plural."""
    loss_unit: str
    """Unit of the loss: nats per …"""
    settings: Mapping[str, Any]
    """Settings that a resumed run must have too, besides the optimizer's: JSON values."""
    make_optimizer: MakeOptimizer = make_optimizer
    """Makes the transformation for a number of steps."""
    update_arguments: Callable[[Measured], Mapping[str, Any]] = lambda measured: {}
    """Returns the extra arguments of the optimizer's update, from what was measured."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    model: Any
    train_loss: dict[int, float]
    """By step: the loss of the batch that made update 1, 2, …"""
    held_out_loss: dict[int, float]
    """By step: the loss after that many updates."""
    series: Callable[[str], dict[int, float]]
    """Returns any other logged number, by step: `series("held_out/accuracy")`."""
    folder: RunFolder
    checkpoint: Path
    seconds: float
    """Time of training in this process, with compilation and evaluation."""
