"""Fine-tunes a language model on another text and prints how much it forgets of the first.

python -m trainer finetune --from runs/lm-muon-0123abcd --data prose/

python -m trainer finetune --from runs/lm-muon-0123abcd --data prose/ --optimizer adamw
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from trainer.command_line import read_settings
from trainer.data.text import read_text
from trainer.data.tokens import tokenize, tokenize_like
from trainer.devices import DeviceConfig, Devices
from trainer.language import (
    LanguageResult,
    SampleConfig,
    TextConfig,
    held_out_loss,
    report,
    train_on,
)
from trainer.models.decoder import Decoder
from trainer.optimizers import OptimizerConfig
from trainer.pretrained import SIZES, Pretrained, weights_digest
from trainer.training import RunConfig


@dataclass(frozen=True)
class StartConfig:
    """The model to start from, with its sizes, its tokenizer and the length of its context."""

    pretrained: Annotated[Path, tyro.conf.arg(name="from")]
    """The folder of a run of `python -m trainer lm`."""
    old_data: Path | None = None
    """What it was trained on. Default: the source of Python's standard library."""
    old_pattern: str = "*"
    """Which files of the folder --old-data to read, such as *.txt."""


@dataclass(frozen=True)
class NewTextConfig:
    """The text to train on now."""

    data: Path
    """A file or a folder of UTF-8 text."""
    pattern: str = "*"
    """Which files of the folder to read, such as *.txt."""
    batch_size: int = 16
    """Windows of text in a step."""


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    start: StartConfig
    text: NewTextConfig
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2e-3, weight_decay=0.0, warmup_steps=20
        )
    )
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=200, eval_every=50))
    sample: SampleConfig = field(default_factory=SampleConfig)
    devices: DeviceConfig = field(default_factory=DeviceConfig)


@dataclass(frozen=True)
class Losses:
    """Held-out losses of one model, in nats per byte."""

    new: float
    """On the text that it is fine-tuned on."""
    old: float
    """On the text that it was trained on."""


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned language model."""

    language: LanguageResult
    before: Losses
    after: Losses


def train(config: Config) -> FinetuneResult:
    """Fine-tunes all parameters of the model, with a new optimizer state."""
    devices = Devices.start(config.devices)
    start = Pretrained.read(config.start.pretrained)
    text = TextConfig(
        config.text.data,
        config.text.pattern,
        tokenizer=start.settings["tokenizer"],
        context=start.settings["context"],
        batch_size=config.text.batch_size,
    )
    old_source = read_text(config.start.old_data, config.start.old_pattern)
    old = tokenize(old_source, text.tokenizer)
    start.check_text(old_source, old)
    source = read_text(text.data, text.pattern)
    new = tokenize_like(source, old)

    def losses(model: Decoder) -> Losses:
        return Losses(held_out_loss(model, new, text), held_out_loss(model, old, text))

    model = start.load(old.vocabulary, devices)
    graph, placed = nnx.split(model)
    whole = nnx.merge(graph, devices.gather(placed))
    before = losses(whole)
    sizes = {name: start.settings[name] for name in SIZES}
    language = train_on(
        source,
        new,
        model,
        name="finetune",
        settings={**sizes, "from": f"sha256 {weights_digest(whole)[:12]}"},
        text=text,
        sample=config.sample,
        optimizer=config.optimizer,
        run=config.run,
        devices=devices,
    )
    return FinetuneResult(language, before, losses(language.run.model))


def report_losses(result: FinetuneResult) -> None:
    """Prints what was gained on the new text and lost on the old one."""
    table = Table("held-out loss, nats per byte", "before", "after", "change")
    for text in ("new", "old"):
        before, after = getattr(result.before, text), getattr(result.after, text)
        table.add_row(f"{text} text", f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    Console(highlight=False).print(table)


def main(arguments: Sequence[str]) -> None:
    result = train(read_settings("finetune", Config, __doc__, arguments))
    report(result.language)
    report_losses(result)
