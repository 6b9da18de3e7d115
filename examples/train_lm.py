"""Trains a small language model on text, by default the source of Python's standard library.

python examples/train_lm.py

python examples/train_lm.py --optimizer adamw --learning-rate 1e-3 --steps 200

python examples/train_lm.py --data texts/ --tokenizer bpe:4096 --width 256

python examples/train_lm.py --mesh fsdp=4,tensor=2                 # eight devices

python examples/train_lm.py --mesh fsdp=8 --processes 2            # in two processes
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from common.command_line import read_settings
from common.decoder import Decoder, DecoderConfig
from common.devices import DeviceConfig
from common.errors import run_command
from common.language import (
    MEASURING_LOGITS,
    LanguageResult,
    SampleConfig,
    TextConfig,
    report,
    train_language_model,
)
from common.optimizers import OptimizerConfig
from common.training import RunConfig


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
        training: parts of the `Task` that are not to be the example's.
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


def main() -> None:
    report(train(read_settings(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
