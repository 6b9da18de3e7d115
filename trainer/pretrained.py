"""A model that `python -m trainer lm` trained, to start from."""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from trainer.data.text import Text
from trainer.data.tokens import Tokens
from trainer.devices import Devices
from trainer.errors import UsageError
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.records.checkpoints import Checkpoints
from trainer.records.run_folder import RunFolder

SIZES = tuple(field.name for field in dataclasses.fields(DecoderConfig))


@dataclass(frozen=True)
class Pretrained:
    """A finished or stopped run of the language model, with its settings."""

    folder: RunFolder
    settings: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the settings in a run folder.

        Raises:
            UsageError: the folder holds no run, or its run did not train a decoder on text.
        """
        folder = RunFolder(path)
        if not folder.holds_run:
            raise UsageError(
                f"--from {path} holds no run; give a folder that `python -m trainer lm` wrote"
            )
        settings = folder.read_settings()
        missing = {*SIZES, "tokenizer", "context", "text"} - settings.keys()
        if missing:
            raise UsageError(
                f"--from {path} is no run of `python -m trainer lm`: "
                f"its settings lack {min(missing)}"
            )
        return cls(folder, settings)

    @property
    def decoder(self) -> DecoderConfig:
        return DecoderConfig(**{name: self.settings[name] for name in SIZES})

    def check_text(self, text: Text, tokens: Tokens) -> None:
        """Raises UsageError unless the model was trained with this text and tokenizer."""
        found, trained = f"sha256 {tokens.digest[:12]}", self.settings["text"]
        if found != trained:
            raise UsageError(
                f"{self.folder.path} was trained on another text than {text.name} "
                f"({trained}, not {found}); give it as --old-data"
            )

    def load(self, vocabulary: int, devices: Devices) -> Decoder:
        """Returns the model of the newest checkpoint, with its arrays placed by `devices`."""
        model = nnx.jit(partial(Decoder, self.decoder, vocabulary))(rngs=nnx.Rngs(0))
        nnx.update(model, devices.place(nnx.state(model)))
        (loaded,) = Checkpoints(self.folder.checkpoints, devices).restore_part((nnx.state(model),))
        nnx.update(model, loaded)
        return model


def weights_digest(model: nnx.Module) -> str:
    """Returns one hash of all weights, which must be on one device."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.state(model)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
