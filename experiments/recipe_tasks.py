"""The tasks on which recipes are compared: a language model on bytes, and images of digits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments import flat_decoder
from trainer.data.batches import shuffled_batches
from trainer.data.images import read_images
from trainer.data.text import read_text
from trainer.data.tokens import tokenize
from trainer.data.windows import held_out_batches, training_batches
from trainer.models.convolutions import ConvolutionalNet, ConvolutionConfig
from trainer.models.decoder import DecoderConfig

CONTEXT = 128
LAYERS = 4
HEAD_DIM = 32
EVALUATED_AT_ONCE = 32
DIGIT_CHANNELS = 8


@dataclass(frozen=True)
class Task:
    """A model, its loss and its data."""

    init: Callable[[int], Any]
    """Maps a seed to parameters."""
    loss: Callable[[Any, Any], Float[Array, ""]]
    """Maps parameters and a batch to the loss."""
    batches: Callable[[int], Iterator[Any]]
    """Maps a seed to an endless iterator of batches."""
    evaluate: Callable[[Any], tuple[float, float]]
    """Maps parameters to the loss and the share of errors on held-out data."""
    warmup: int


def make_task(name: str, batch_size: int, width: int) -> Task:
    """Returns the task called `name`; `width` is that of the language model."""
    return _language(batch_size, width) if name == "language" else _digits(batch_size)


def _language(batch_size: int, width: int) -> Task:
    tokens = tokenize(read_text(None), "bytes")
    config = DecoderConfig(width=width, layers=LAYERS, heads=width // HEAD_DIM)
    loss = partial(flat_decoder.loss, heads=config.heads)
    held_out = held_out_batches(tokens, context=CONTEXT, batch_size=EVALUATED_AT_ONCE)
    compiled = jax.jit(loss)
    return Task(
        init=partial(flat_decoder.init, config, tokens.vocabulary),
        loss=loss,
        batches=lambda seed: training_batches(
            tokens, context=CONTEXT, batch_size=batch_size, seed=seed
        ),
        evaluate=lambda params: (
            float(np.mean([compiled(params, batch) for batch in held_out])),
            1.0,
        ),
        warmup=50,
    )


def _digits(batch_size: int) -> Task:
    images = read_images(None)
    network = ConvolutionalNet(ConvolutionConfig(DIGIT_CHANNELS), images.classes)
    mean, deviation = float(images.train.images.mean()), float(images.train.images.std())
    held_out = {"image": images.held_out.images, "label": images.held_out.labels}

    def logits(params: Any, batch: Any) -> Float[Array, "batch classes"]:
        scaled = (batch["image"].astype(jnp.float32) - mean) / deviation
        return jnp.asarray(network.apply({"params": params}, scaled))

    def loss(params: Any, batch: Any) -> Float[Array, ""]:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch), batch["label"]
        )
        return losses.mean()

    @jax.jit
    def evaluate(params: Any) -> tuple[Array, Array]:
        wrong = logits(params, held_out).argmax(-1) != held_out["label"]
        return loss(params, held_out), wrong.mean()

    first = jnp.zeros((1, *images.train.images.shape[1:]))
    return Task(
        init=jax.jit(lambda seed: network.init(jax.random.key(seed), first)["params"]),
        loss=loss,
        batches=lambda seed: shuffled_batches(images.train, batch_size=batch_size, seed=seed),
        evaluate=lambda params: tuple(map(float, evaluate(params))),
        warmup=20,
    )
