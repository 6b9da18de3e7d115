"""The folder that a run writes to, and the checks if it holds a run already."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UsageError


@dataclass(frozen=True)
class RunFolder:
    """Paths of all files and folders that a run writes."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    @property
    def holds_run(self) -> bool:
        return self.settings.exists() or self.checkpoints.exists()

    def begin(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Makes the folder ready for a new run.

        Args:
            settings: those that a resumed run must have too; JSON values only.
            overwrite: removes the files of an existing run, and no other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path} is a file; give a folder")
        if self.holds_run:
            if not overwrite:
                raise UsageError(
                    f"{self.path} holds a run already; "
                    "add --resume or --overwrite, or give another --out"
                )
            self._clear()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.settings, json.dumps(dict(settings), indent=2))
        except OSError as error:
            raise UsageError(f"cannot write to --out {self.path}: {error.strerror}") from error

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Raises UsageError unless the run was begun with these settings."""
        if not self.holds_run:
            raise UsageError(f"{self.path} holds no run to resume; leave --resume out")
        begun = self.read_settings()
        names = sorted({*begun, *settings})
        different = [name for name in names if begun.get(name) != settings.get(name)]
        if different:
            shown = ", ".join(
                f"{name} is {settings.get(name)} but was {begun.get(name)}" for name in different
            )
            raise UsageError(f"cannot resume {self.path}: {shown}")

    def read_settings(self) -> dict[str, Any]:
        """Returns the settings that the run was begun with."""
        try:
            return dict(json.loads(self.settings.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"{self.settings} is missing or damaged; start again with --overwrite"
            ) from error

    def _clear(self) -> None:
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.settings, self.metrics, self.plot, self.sample):
            file.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Writes a temporary file and renames it, so that the file is never incomplete."""
    part = file.with_name(f"{file.name}.tmp")
    part.write_text(text)
    os.replace(part, file)
