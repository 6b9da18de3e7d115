"""What a run measured: in memory, as lines of JSON, and for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Float
from tensorboardX import SummaryWriter

from trainer.errors import UsageError
from trainer.records.run_folder import RunFolder, write_whole

Row = dict[str, float]


class Metrics:
    """Rows of named numbers, each with its step; rows after the step `start` are dropped."""

    def __init__(self, folder: RunFolder, *, start: int = 0) -> None:
        self.rows = [row for row in _read(folder.metrics) if row["step"] <= start]
        write_whole(folder.metrics, "".join(map(_line, self.rows)))
        self._file = folder.metrics.open("a")
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=start + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        self._tensorboard.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        self.rows.append(row)
        self._file.write(_line(row))
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def series(self, name: str) -> dict[int, float]:
        """Returns one measured number by step."""
        return {int(row["step"]): row[name] for row in self.rows if name in row}


def read_layers(folder: RunFolder, quantity: str) -> dict[str, Float[np.ndarray, "steps parts"]]:
    """Reads the numbers that a run logged for the parts of each layer, by the layer's path.

    Args:
        quantity: such as `train/load`, logged as `train/load/blocks/0/mlp/3` for part 3 of a layer.
    """
    try:
        rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    except OSError as error:
        raise UsageError(f"cannot read {folder.metrics}: {error.strerror}") from error
    begin = f"{quantity}/"
    rows = [row for row in rows if any(name.startswith(begin) for name in row)]
    layers: dict[str, list[str]] = {}
    for name in rows[0] if rows else []:
        if name.startswith(begin):
            layers.setdefault(name.removeprefix(begin).rpartition("/")[0], []).append(name)
    return {
        layer: np.array([[row[part] for part in parts] for row in rows])
        for layer, parts in layers.items()
    }


def _read(file: Path) -> list[Row]:
    """Reads rows up to the first that a crash left incomplete."""
    rows: list[Row] = []
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
