"""Windows of tokens, and batches of them."""

from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Int, UInt

from trainer.data.batches import shuffled_batches
from trainer.data.tokens import Tokens
from trainer.errors import UsageError

HELD_OUT_WINDOWS = 512


@dataclass(frozen=True)
class Windows:
    """Consecutive windows of a text, each with one extra token for the last target."""

    tokens: UInt[np.ndarray, "tokens"]
    context: int

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> Int[np.ndarray, "context+1"]:
        start = index * self.context
        return self.tokens[start : start + self.context + 1].astype(np.int32)


def training_batches(
    tokens: Tokens, *, context: int, batch_size: int, seed: int
) -> grain.DatasetIterator[Int[np.ndarray, "batch context+1"]]:
    """Returns endless batches, shuffled anew each epoch; the iterator's state is its position."""
    windows = _windows(tokens.train, context, "training")
    return shuffled_batches(windows, batch_size=batch_size, seed=seed)


def held_out_batches(
    tokens: Tokens, *, context: int, batch_size: int
) -> list[Int[np.ndarray, "batch context+1"]]:
    """Returns the same windows every time, spread evenly over the held-out text."""
    windows = _windows(tokens.held_out, context, "held-out")
    count = min(len(windows), HELD_OUT_WINDOWS)
    batch_size = min(batch_size, count)
    count -= count % batch_size  # one shape, one compilation
    chosen = np.linspace(0, len(windows) - 1, count).round().astype(int)
    stacked = np.stack([windows[index] for index in chosen])
    return list(stacked.reshape(-1, batch_size, context + 1))


def _windows(tokens: UInt[np.ndarray, "tokens"], context: int, part: str) -> Windows:
    windows = Windows(tokens, context)
    if not len(windows):
        raise UsageError(
            f"the text is too short: its {part} part has {len(tokens)} tokens, and "
            f"--context {context} needs {context + 1}; give more text or a shorter context"
        )
    return windows
