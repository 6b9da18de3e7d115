"""What a run is given, and what it gives back."""

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
"""By name a number, or a tree of arrays, of which every number is logged."""
MakeOptimizer = Callable[[OptimizerConfig, int], optax.GradientTransformation]
Objective = Callable[[Any, Batch], tuple[Float[Array, ""], Measured]]


@dataclass(frozen=True)
class Task:
    """What is trained on what."""

    name: str
    """One word, for the folder."""
    data: str
    """Where the data came from, in a few words."""
    amount: str
    """How much there is for training and held out, in a line."""
    model: nnx.Module
    objective: Objective
    """Maps (model, batch) to a mean loss and other mean measurements."""
    batches: Iterator[Batch]
    """Endless; Orbax can save its position, as it can that of grain's iterators."""
    held_out: Sequence[Batch]
    items: int
    """In one batch, for the speed shown."""
    unit: str
    """Of an item, in the plural."""
    loss_unit: str
    """Of the loss: nats per …"""
    settings: Mapping[str, Any]
    """What a resume must agree with, apart from the optimizer: JSON values."""
    make_optimizer: MakeOptimizer = make_optimizer
    """Makes the transformation for a number of steps."""
    update_arguments: Callable[[Measured], Mapping[str, Any]] = lambda measured: {}
    """Takes from what was measured what the optimizer's update needs besides gradients."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    model: Any
    train_loss: dict[int, float]
    """By step: the loss of the batch that made update 1, 2, …"""
    held_out_loss: dict[int, float]
    """By step: after so many updates."""
    series: Callable[[str], dict[int, float]]
    """Gives any other number that was logged, by step: `series("held_out/accuracy")`."""
    folder: RunFolder
    checkpoint: Path
    seconds: float
    """Of this session, compilation and evaluation included."""
