"""Training runs of examples/train_lm.py, by what experiments vary."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from common.decoder import DecoderConfig
from common.language import LanguageResult, SampleConfig, TextConfig
from common.optimizers import OptimizerConfig
from common.training import RunConfig
from train_lm import Config, train

EVALUATIONS = 18  # of the held-out loss over a run


@dataclass(frozen=True)
class LanguageTrial:
    """One run; what is not named here is as the example has it."""

    optimizer: str
    learning_rate: float
    steps: int
    seed: int
    orthogonalizer: str = "fast"
    batch_size: int = 32
    width: int = 128
    layers: int = 4
    context: int = 128
    data: str | None = None
    """A file or a folder of text; None for the source of Python's standard library."""


def run(trial: LanguageTrial) -> LanguageResult:
    """Trains once, and leaves nothing on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        return train(
            Config(
                text=TextConfig(
                    data=None if trial.data is None else Path(trial.data),
                    batch_size=trial.batch_size,
                    context=trial.context,
                ),
                decoder=DecoderConfig(width=trial.width, layers=trial.layers),
                optimizer=OptimizerConfig(
                    optimizer=trial.optimizer,
                    learning_rate=trial.learning_rate,
                    orthogonalizer=trial.orthogonalizer,
                ),
                run=RunConfig(
                    steps=trial.steps,
                    seed=trial.seed,
                    eval_every=max(1, trial.steps // EVALUATIONS),
                    checkpoint_every=trial.steps,
                    out=Path(folder) / "run",
                    quiet=True,
                ),
                sample=SampleConfig(sample_tokens=1),
            )
        )


def held_out_loss(trial: LanguageTrial) -> dict[str, dict[str, float]]:
    """Returns the held-out loss by step, in nats per byte."""
    curve = run(trial).run.held_out_loss
    return {"held_out_loss": {str(step): round(loss, 5) for step, loss in curve.items()}}
