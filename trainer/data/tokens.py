"""Text to tokens and back: bytes as they are, or byte-level BPE trained on the training part."""

import hashlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt

from trainer.data.text import Text
from trainer.errors import UsageError

BYTES = 256
LARGEST_VOCABULARY = 2**16  # ids are kept as uint16


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, with the tokenizer that turns ids back into text."""

    train: UInt[np.ndarray, "train"]
    held_out: UInt[np.ndarray, "held_out"]
    bytes_per_token: float
    """Of the held-out part; converts nats per token to nats per byte."""
    bpe: Any = None
    """The tokenizer; None where tokens are bytes."""

    @property
    def vocabulary(self) -> int:
        return BYTES if self.bpe is None else self.bpe.get_vocab_size()

    @property
    def digest(self) -> str:
        """Hash of every token and of the split."""
        parts = (hashlib.sha256(part.tobytes()).digest() for part in (self.train, self.held_out))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(text.encode()) if self.bpe is None else self.bpe.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        if self.bpe is None:
            return bytes(ids).decode("utf-8", errors="replace")
        return self.bpe.decode(list(ids))


def tokenize(text: Text, spec: str, cache: Path | None = None) -> Tokens:
    """Encodes a text as `spec` says: "bytes", or "bpe:N" for a vocabulary of N tokens."""
    if spec == "bytes":
        train, held_out = (
            np.frombuffer("".join(part).encode(), np.uint8) for part in (text.train, text.held_out)
        )
        return Tokens(train, held_out, 1.0)
    size = _bpe_size(spec)
    return _of_bpe(text, *_bpe_module().train_and_encode(text, size, cache or default_cache()))


def tokenize_like(text: Text, tokens: Tokens) -> Tokens:
    """Encodes a text with the tokenizer that made `tokens`."""
    if tokens.bpe is None:
        return tokenize(text, "bytes")
    encoded = (_bpe_module().encode(tokens.bpe, part) for part in (text.train, text.held_out))
    return _of_bpe(text, tokens.bpe, *encoded)


def default_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "muon_jax" / "tokens"


def _bpe_size(spec: str) -> int:
    kind, _, size = spec.partition(":")
    if kind != "bpe" or not size.isdecimal() or not BYTES <= int(size) <= LARGEST_VOCABULARY:
        raise UsageError(
            f"--tokenizer {spec}: give bytes, or bpe:N with N from {BYTES} to {LARGEST_VOCABULARY}"
        )
    return int(size)


def _of_bpe(text: Text, bpe: Any, train: np.ndarray, held_out: np.ndarray) -> Tokens:
    held_out_bytes = sum(len(document.encode()) for document in text.held_out)
    return Tokens(train, held_out, held_out_bytes / max(1, len(held_out)), bpe)


def _bpe_module() -> Any:
    """Returns `trainer.data.bpe`, loaded on demand because `make demo` installs no tokenizers."""
    try:
        return importlib.import_module("trainer.data.bpe")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--tokenizer bpe:N needs the package {error.name}; install it by "
            "`.venv/bin/python -m pip install --group trainer`, or give --tokenizer bytes"
        ) from error
