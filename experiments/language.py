"""Training runs of the trainer's language model, with the settings that experiments vary."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.curves import by_step
from experiments.sweeps import ORTHOGONALIZER
from trainer.language import LanguageResult, SampleConfig, TextConfig
from trainer.models.decoder import DecoderConfig
from trainer.optimizers import OptimizerConfig
from trainer.programs.lm import Config, train
from trainer.training import RunConfig


@dataclass(frozen=True)
class LanguageTrial:
    """One run; all other settings are the trainer's defaults."""

    optimizer: str
    learning_rate: float
    steps: int
    seed: int
    orthogonalizer: str = ORTHOGONALIZER
    scale: str = "match_rms"
    weight_decay: float | None = None
    batch_size: int = 32
    context: int = 128
    width: int = 128
    layers: int = 4
    evaluations: int = 18
    """Number of evaluations of the held-out loss in a run."""
    fallback_learning_rate: float | None = None
    fallback_nesterov: bool = True
    attention_rate: float = 1.0
    data: str | None = None
    """A file or a folder of text; None for the source of Python's standard library."""

    @property
    def text_config(self) -> TextConfig:
        data = None if self.data is None else Path(self.data)
        return TextConfig(data=data, context=self.context, batch_size=self.batch_size)

    @property
    def decoder_config(self) -> DecoderConfig:
        return DecoderConfig(width=self.width, layers=self.layers)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            orthogonalizer=self.orthogonalizer,
            scale=self.scale,
            fallback_learning_rate=self.fallback_learning_rate,
            fallback_nesterov=self.fallback_nesterov,
            attention_rate=self.attention_rate,
        )

    @property
    def eval_every(self) -> int:
        return max(1, self.steps // self.evaluations)


@dataclass(frozen=True, kw_only=True)
class LanguagePlan:
    """What all runs of an experiment have in common."""

    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 8
    width: int = 64
    layers: int = 2
    data: str | None = None
    """A file or a folder of text. Default: the source of Python's standard library."""
    workers: int = 1
    """Number of trials that run at once, each on one core; 0 runs them in this process."""

    @property
    def shared(self) -> dict[str, Any]:
        """Returns the settings that every trial gets."""
        return {name: getattr(self, name) for name in ("batch_size", "width", "layers", "data")}


def run(trial: LanguageTrial, **training: Any) -> LanguageResult:
    """Trains once, and leaves nothing on the disk.

    Args:
        training: parts of the `Task` to replace.
    """
    with tempfile.TemporaryDirectory() as folder:
        return train(settings(trial, Path(folder) / "run"), **training)


def settings(trial: LanguageTrial, out: Path) -> Config:
    """Returns the trainer's settings for a trial that writes into `out`."""
    return Config(
        text=trial.text_config,
        decoder=trial.decoder_config,
        optimizer=trial.optimizer_config,
        run=RunConfig(
            steps=trial.steps,
            seed=trial.seed,
            eval_every=trial.eval_every,
            checkpoint_every=trial.steps,
            out=out,
            quiet=True,
        ),
        sample=SampleConfig(sample_tokens=1),
    )


def held_out_loss(trial: LanguageTrial, **training: Any) -> dict[str, dict[str, float]]:
    """Returns the held-out loss by step, in nats per byte, of a `run`."""
    return {"held_out_loss": by_step(run(trial, **training).run.held_out_loss)}
