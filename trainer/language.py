"""Language modelling on a text with any model: the task, a sample and the final report."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.panel import Panel
from rich.text import Text as Styled

from muon_jax.attention import collect_max_logits
from trainer.data.text import Text, read_text
from trainer.data.tokens import Tokens, tokenize
from trainer.data.windows import held_out_batches, training_batches
from trainer.devices import DeviceConfig, Devices
from trainer.errors import UsageError
from trainer.models.sampling import sample_tokens
from trainer.optimizers import OptimizerConfig
from trainer.records.run_folder import write_whole
from trainer.task import Measured, Result, Task
from trainer.training import RunConfig, fit

PROMPT_TOKENS = 32

Build = Callable[[int, nnx.Rngs], nnx.Module]
"""Makes the model from the size of the vocabulary."""


@dataclass(frozen=True)
class TextConfig:
    """The text, and how it is cut into batches."""

    data: Path | None = None
    """A file or a folder of UTF-8 text. Default: the source of Python's standard library."""
    pattern: str = "*"
    """Which files of the folder to read, such as *.txt."""
    tokenizer: str = "bytes"
    """bytes, or bpe:N for a vocabulary of N, trained on the text and kept in the user's cache."""
    context: int = 128
    """Tokens that the model sees at once."""
    batch_size: int = 32
    """Windows of text in a step."""

    def __post_init__(self) -> None:
        for name, value in (("context", self.context), ("batch-size", self.batch_size)):
            if value < 1:
                raise UsageError(f"--{name} {value}: give at least 1")


@dataclass(frozen=True)
class SampleConfig:
    """The text that the trained model writes at the end."""

    prompt: str | None = None
    """Text that the sample continues. Default: the first words of the held-out text."""
    sample_tokens: int = 400
    """How many tokens it writes."""
    temperature: float = 0.7
    """Low for likely text, 1 for the model's own probabilities, 0 for the likeliest token only."""

    def __post_init__(self) -> None:
        if self.prompt == "":
            raise UsageError("--prompt is empty: give at least one character")
        if self.sample_tokens < 1:
            raise UsageError(f"--sample-tokens {self.sample_tokens}: give at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature}: give at least 0")


@dataclass(frozen=True)
class LanguageResult:
    """A trained language model."""

    run: Result
    nats_per_byte: float
    """Held-out loss, comparable between tokenizers."""
    prompt: str
    sample: str
    """What the model wrote after the prompt."""


def train_language_model(
    build: Build,
    *,
    text: TextConfig,
    run: RunConfig,
    devices: DeviceConfig,
    **training: Any,
) -> LanguageResult:
    """Trains the model that `build` makes and draws a sample from it.

    Args:
        training: other arguments of `train_on`.
    """
    started = Devices.start(devices)
    source = read_text(text.data, text.pattern)
    tokens = tokenize(source, text.tokenizer)
    model = nnx.jit(partial(build, tokens.vocabulary))(nnx.Rngs(run.seed))
    return train_on(source, tokens, model, text=text, run=run, devices=started, **training)


def train_on(
    source: Text,
    tokens: Tokens,
    model: nnx.Module,
    *,
    name: str,
    settings: Mapping[str, Any],
    text: TextConfig,
    sample: SampleConfig,
    optimizer: OptimizerConfig,
    run: RunConfig,
    devices: Devices,
    **training: Any,
) -> LanguageResult:
    """Trains a model on the tokens of a text and draws a sample from it.

    Args:
        name: one word for the name of the run folder.
        settings: of the model; a resumed run must have the same.
        training: other parts of the `Task`, such as `MEASURING_LOGITS`; `objective` is
            `next_token_loss` unless given.
    """
    task = language_task(
        source, tokens, model, name=name, settings=settings, text=text, seed=run.seed, **training
    )
    result = fit(task, optimizer, run, devices)
    prompt, written = _write(result.model, tokens, text.context, sample, run.seed)
    write_whole(result.folder.sample, prompt + written)
    nats_per_byte = result.held_out_loss[run.steps] / tokens.bytes_per_token
    return LanguageResult(result, nats_per_byte, prompt, written)


def language_task(
    source: Text,
    tokens: Tokens,
    model: nnx.Module,
    *,
    name: str,
    settings: Mapping[str, Any],
    text: TextConfig,
    seed: int,
    **training: Any,
) -> Task:
    """Describes the training of a model on the tokens of a text.

    Args:
        name, settings, training: as in `train_on`.
        seed: of the order of the batches.
    """
    shape = {"context": text.context, "batch_size": text.batch_size}
    return Task(
        name=name,
        data=source.name,
        amount=source.amount,
        model=model,
        batches=training_batches(tokens, seed=seed, **shape),
        held_out=held_out_batches(tokens, **shape),
        items=text.context * text.batch_size,
        unit="tokens",
        loss_unit="nats per byte" if tokens.bpe is None else "nats per token",
        settings={
            **settings,
            "tokenizer": text.tokenizer,
            **shape,
            "text": f"sha256 {tokens.digest[:12]}",
        },
        **{"objective": next_token_loss, **training},
    )


def next_token_loss(
    model: Any, windows: Int[Array, "batch context+1"]
) -> tuple[Float[Array, ""], Measured]:
    """Returns the mean cross-entropy and the accuracy of next-token prediction."""
    return compare(model(windows[:, :-1]), windows[:, 1:])


def held_out_loss(model: Any, tokens: Tokens, text: TextConfig) -> float:
    """Returns the loss of a language model on held-out tokens, in nats per byte."""
    batches = held_out_batches(tokens, context=text.context, batch_size=text.batch_size)
    losses = [float(_loss(model, batch)) for batch in batches]
    return sum(losses) / len(losses) / tokens.bytes_per_token


def loss_and_max_logits(
    model: Any, windows: Int[Array, "batch context+1"]
) -> tuple[Float[Array, ""], Measured]:
    """Returns what `next_token_loss` does, and the largest logits of every layer and head."""
    forward = nnx.capture(lambda model, x: model(x, report=True), nnx.Intermediate)
    logits, intermediates = forward(model, windows[:, :-1])
    loss, measured = compare(logits, windows[:, 1:])
    return loss, {**measured, "max_logits": collect_max_logits(intermediates)}


MEASURING_LOGITS: Mapping[str, Any] = {
    "objective": loss_and_max_logits,
    "update_arguments": lambda measured: {"max_logits": measured["max_logits"]},
}
"""Parts of a `Task` whose optimizer clips by the attention logits that the model reports."""


def compare(
    logits: Float[Array, "batch context vocabulary"], targets: Int[Array, "batch context"]
) -> tuple[Float[Array, ""], Measured]:
    """Returns what `next_token_loss` does, from logits instead of a model."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean(), {"accuracy": (logits.argmax(-1) == targets).mean()}


def report(result: LanguageResult) -> None:
    """Prints the sample, the held-out loss, and where the files are."""
    console = Console(highlight=False)
    run = result.run
    sample = Styled(_printable(result.prompt).lstrip("\n"), "dim")
    sample.append(_printable(result.sample).rstrip("\n"), "not dim")
    console.print(Panel(sample, title="sample, after a prompt", title_align="left"))
    console.print(
        f"held-out loss [bold]{result.nats_per_byte:.4f}[/] nats per byte "
        f"= [bold]{result.nats_per_byte / math.log(2):.4f}[/] bits per byte, "
        f"after {max(run.held_out_loss)} steps; this process trained for {run.seconds:.0f} s",
        soft_wrap=True,
    )
    files = {
        "loss curve": run.folder.plot,
        "metrics": run.folder.metrics,
        "TensorBoard": run.folder.tensorboard,
        "checkpoint": run.checkpoint,
        "sample": run.folder.sample,
    }
    for what, where in files.items():
        console.print(f"  {what:<12}{where}", markup=False, soft_wrap=True)


@nnx.jit
def _loss(model: Any, windows: Int[Array, "batch context+1"]) -> Float[Array, ""]:
    return next_token_loss(model, windows)[0]


def _write(
    model: nnx.Module, tokens: Tokens, context: int, sample: SampleConfig, seed: int
) -> tuple[str, str]:
    """Returns the prompt and what the model writes after it."""
    if sample.prompt is None:
        prompt = tokens.held_out[:PROMPT_TOKENS].tolist()
    else:
        prompt = tokens.encode(sample.prompt)
    drawn = sample_tokens(
        model,
        jnp.asarray(prompt, jnp.int32),
        count=sample.sample_tokens,
        context=context,
        temperature=sample.temperature,
        seed=seed,
    )
    return tokens.decode(prompt), tokens.decode(drawn.tolist())


def _printable(text: str) -> str:
    """Replaces control characters, because the model may write any byte."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
