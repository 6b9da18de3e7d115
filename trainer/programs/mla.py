"""Trains a small language model with multi-head latent attention, using MuonClip.

python -m trainer mla

python -m trainer mla --threshold None    # Muon without QK-Clip: the logits grow
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import optax

import muon_jax
from trainer.command_line import read_settings
from trainer.devices import DeviceConfig
from trainer.errors import UsageError
from trainer.language import (
    MEASURING_LOGITS,
    LanguageResult,
    SampleConfig,
    TextConfig,
    report,
    train_language_model,
)
from trainer.models.decoder import Decoder
from trainer.models.latent_attention import LatentAttention, LatentConfig, clip_target
from trainer.optimizers import OptimizerConfig, learning_rate_schedule
from trainer.records.logit_plots import plot_max_logits
from trainer.training import RunConfig

PLOT = "max_logits.png"


@dataclass(frozen=True)
class MuonClipConfig:
    """The optimizer, muon_jax.muon_clip."""

    learning_rate: float = 0.05
    """Peak learning rate. The default is so large that attention logits explode without QK-Clip."""
    weight_decay: float = 0.0
    """Weight decay, multiplied by the learning rate. The default is 0, because decay also slows the
    growth of logits."""
    threshold: float | None = 100.0
    """Attention logit above which a head is clipped; None trains without QK-Clip."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < float("inf"):
            raise UsageError(f"--threshold {self.threshold}: give a number above 0, or None")


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    text: TextConfig = field(default_factory=lambda: TextConfig(context=96, batch_size=16))
    decoder: LatentConfig = field(default_factory=LatentConfig)
    optimizer: MuonClipConfig = field(default_factory=MuonClipConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=300))
    sample: SampleConfig = field(default_factory=SampleConfig)
    devices: DeviceConfig = field(default_factory=DeviceConfig)


def train(config: Config) -> LanguageResult:
    """Runs one training from data to sample."""
    clip = config.optimizer

    def make_optimizer(optimizer: OptimizerConfig, steps: int) -> optax.GradientTransformation:
        schedule = learning_rate_schedule(optimizer, steps)
        # One rate and one decay for all parameters, as Kimi K2 has them.
        shared = {
            "weight_decay": optimizer.decay,
            "weight_decay_mask": True,
            "fallback_learning_rate": schedule,
        }
        if clip.threshold is None:
            return muon_jax.muon(schedule, **shared)
        return muon_jax.muon_clip(
            schedule,
            threshold=clip.threshold,
            targets={"blocks/*/attention": clip_target(config.decoder)},
            **shared,
        )

    result = train_language_model(
        lambda vocabulary, rngs: Decoder(
            config.decoder, vocabulary, attention=LatentAttention, rngs=rngs
        ),
        name="mla",
        settings={**asdict(config.decoder), "threshold": clip.threshold},
        text=config.text,
        sample=config.sample,
        optimizer=OptimizerConfig(
            "muon", learning_rate=clip.learning_rate, weight_decay=clip.weight_decay
        ),
        run=config.run,
        devices=config.devices,
        make_optimizer=make_optimizer,
        **MEASURING_LOGITS,
    )
    plot_max_logits(result.run.folder.path / PLOT, [result.run.folder])
    return result


def main(arguments: Sequence[str]) -> None:
    result = train(read_settings("mla", Config, __doc__, arguments))
    report(result)
    print(f"  logits      {result.run.folder.path / PLOT}")
