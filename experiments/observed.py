"""A plain training loop of the trainer's language model, for experiments that inspect updates.

It has the same weights, batches and updates as `python -m trainer lm`, but saves no checkpoints and
no metrics.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from experiments.language import LanguageTrial
from muon_jax.diagnostics import by_matrix
from trainer.data.text import read_text
from trainer.data.tokens import tokenize
from trainer.data.windows import held_out_batches, training_batches
from trainer.language import next_token_loss
from trainer.models.decoder import Decoder
from trainer.optimizers import learning_rate_schedule, make_optimizer

KINDS = ("query", "key", "value", "out", "gate", "up", "down")
"""Names of the matrices of a block in the model."""


@dataclass(frozen=True)
class Seen:
    """The model after `step` updates, and the last update."""

    step: int
    model: Decoder
    params: Any
    direction: Any
    """The last update without weight decay, divided by minus the learning rate."""
    held_out_loss: float


@dataclass(frozen=True)
class _Run:
    """What stays the same from step to step."""

    trial: LanguageTrial
    graph: Any
    transform: optax.GradientTransformation

    @cached_property
    def step(self) -> Callable[..., Any]:
        @jax.jit
        def step(params: Any, state: Any, batch: Any) -> Any:
            gradients = jax.grad(lambda params: self.loss(params, batch))(params)
            updates, state = self.transform.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, params, updates

        return step

    def loss(self, params: Any, batch: Any) -> Float[Array, ""]:
        return next_token_loss(nnx.merge(self.graph, params), batch)[0]

    def direction(self, params: Any, updates: Any, count: int) -> Any:
        config = self.trial.optimizer_config
        rate = learning_rate_schedule(config, self.trial.steps)(count)
        return jax.tree.map(
            lambda update, leaf: -update / rate - config.decay * leaf * (leaf.ndim > 1),
            updates,
            params,
        )


def observe(trial: LanguageTrial) -> Iterator[Seen]:
    """Trains, and yields after the first update, at every evaluation and at the end."""
    text = trial.text_config
    tokens = tokenize(read_text(text.data, text.pattern), text.tokenizer)
    shape = {"context": text.context, "batch_size": text.batch_size}
    make = partial(Decoder, trial.decoder_config, tokens.vocabulary)
    graph, params = nnx.split(nnx.jit(lambda rngs: make(rngs=rngs))(nnx.Rngs(trial.seed)))
    run = _Run(trial, graph, make_optimizer(trial.optimizer_config, trial.steps))
    batches = training_batches(tokens, seed=trial.seed, **shape)
    held_out, evaluate = held_out_batches(tokens, **shape), jax.jit(run.loss)
    state = run.transform.init(params)
    for step in range(1, trial.steps + 1):
        params, state, before, updates = run.step(params, state, next(batches))
        if step == 1 or step % trial.eval_every == 0 or step == trial.steps:
            yield Seen(
                step,
                nnx.merge(graph, params),
                params,
                run.direction(before, updates, step - 1),
                float(np.mean([evaluate(params, batch) for batch in held_out])),
            )


def by_kind(function: Callable[..., Any], *trees: Any) -> dict[str, float]:
    """Applies a function of (batch, rows, cols) to every matrix; returns the mean over layers."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for path, values in by_matrix(function, *trees).items():
        found[path.split("/")[-2]].extend(np.asarray(values).tolist())
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def root_mean_square(matrices: Float[Array, "batch rows cols"]) -> Float[Array, "batch"]:
    return jnp.sqrt(jnp.mean(jnp.square(matrices), axis=(-2, -1)))
