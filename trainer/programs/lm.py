"""Trains a small language model on text, by default the source of Python's standard library.

python -m trainer lm

python -m trainer lm --optimizer adamw --learning-rate 1e-3 --steps 200

python -m trainer lm --data texts/ --tokenizer bpe:4096 --width 256

python -m trainer lm --mesh fsdp=4,tensor=2                 # eight devices

python -m trainer lm --mesh fsdp=8 --processes 2            # in two processes
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.command_line import read_settings
from trainer.devices import DeviceConfig
from trainer.language import (
    MEASURING_LOGITS,
    LanguageResult,
    SampleConfig,
    TextConfig,
    report,
    train_language_model,
)
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.optimizers import OptimizerConfig
from trainer.training import RunConfig


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    text: TextConfig = field(default_factory=TextConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    devices: DeviceConfig = field(default_factory=DeviceConfig)


def train(config: Config, **training: Any) -> LanguageResult:
    """Runs one training from data to sample; sweeps call it with `RunConfig(quiet=True)`.

    Args:
        training: parts of the `Task` to replace.
    """
    measuring = MEASURING_LOGITS if config.optimizer.optimizer == "muon-clip" else {}
    return train_language_model(
        lambda vocabulary, rngs: Decoder(config.decoder, vocabulary, rngs=rngs),
        name="lm",
        settings=asdict(config.decoder),
        text=config.text,
        sample=config.sample,
        optimizer=config.optimizer,
        run=config.run,
        devices=config.devices,
        **{**measuring, **training},
    )


def main(arguments: Sequence[str]) -> None:
    report(train(read_settings("lm", Config, __doc__, arguments)))
