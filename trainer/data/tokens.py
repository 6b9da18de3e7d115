"""Text to tokens and back: bytes as they are, or byte-level BPE trained on the training part.

A trained BPE and the text that it encoded are kept in the user's cache, one file for each pair of
text and tokenizer, so that a second run starts at once.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data.text import Text
from trainer.errors import UsageError

BYTES = 256
LARGEST_VOCABULARY = 2**16  # ids are kept as uint16


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, with what turns ids back into text."""

    train: UInt[np.ndarray, "train"]
    held_out: UInt[np.ndarray, "held_out"]
    bytes_per_token: float
    """Of the held-out part: what turns nats per token into nats per byte."""
    bpe: Tokenizer | None = None
    """None where tokens are bytes."""

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
    file = (cache or default_cache()) / f"{_cache_key(text, spec)}.npz"
    cached = _load(file)
    if cached is None:
        bpe = _train_bpe(text.train, size)
        train, held_out = _encode(bpe, text.train), _encode(bpe, text.held_out)
        _save(file, bpe, train, held_out)
    else:
        bpe, train, held_out = cached
    return _of_bpe(text, bpe, train, held_out)


def tokenize_like(text: Text, tokens: Tokens) -> Tokens:
    """Encodes a text by the tokenizer that another has."""
    if tokens.bpe is None:
        return tokenize(text, "bytes")
    encoded = (_encode(tokens.bpe, part) for part in (text.train, text.held_out))
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


def _train_bpe(documents: list[str], size: int) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(documents, trainer)
    return bpe


def _of_bpe(text: Text, bpe: Tokenizer, train: np.ndarray, held_out: np.ndarray) -> Tokens:
    held_out_bytes = sum(len(document.encode()) for document in text.held_out)
    return Tokens(train, held_out, held_out_bytes / max(1, len(held_out)), bpe)


def _encode(bpe: Tokenizer, documents: list[str]) -> UInt[np.ndarray, "tokens"]:
    encoded = bpe.encode_batch_fast(documents)
    return np.concatenate([np.asarray(document.ids, np.uint16) for document in encoded])


def _cache_key(text: Text, spec: str) -> str:
    made_from = f"{text.digest} {spec} tokenizers {version('tokenizers')}"
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def _load(file: Path) -> tuple[Tokenizer, np.ndarray, np.ndarray] | None:
    """Reads a cached encoding; None where there is none, or none whole."""
    try:
        # numpy itself would leave a damaged file open
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            bpe = Tokenizer.from_str(stored["tokenizer"].tobytes().decode())
            return bpe, stored["train"], stored["held_out"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _save(file: Path, bpe: Tokenizer, train: np.ndarray, held_out: np.ndarray) -> None:
    """Writes beside the place and renames, so that no reader ever sees half a file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
            text = np.frombuffer(bpe.to_str().encode(), np.uint8)
            np.savez(part, tokenizer=text, train=train, held_out=held_out)
        os.replace(part.name, file)
    except OSError as error:
        raise UsageError(
            f"cannot write the token cache {file.parent}: {error.strerror}; "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
