"""Byte-level BPE, trained on the training part of a text; needs the package tokenizers.

A trained BPE and the text that it encoded are kept in the user's cache, one file for each pair of
text and tokenizer, so that a second run starts at once.
"""

import hashlib
import os
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.data.text import Text
from trainer.errors import UsageError


def train_and_encode(
    text: Text, size: int, cache: Path
) -> tuple[Tokenizer, UInt[np.ndarray, "train"], UInt[np.ndarray, "held_out"]]:
    """Returns a BPE of `size` tokens and both parts of the text, from the cache if it has them."""
    file = cache / f"{_cache_key(text, size)}.npz"
    cached = _load(file)
    if cached is None:
        bpe = _train_bpe(text.train, size)
        cached = bpe, encode(bpe, text.train), encode(bpe, text.held_out)
        _save(file, *cached)
    return cached


def encode(bpe: Tokenizer, documents: list[str]) -> UInt[np.ndarray, "tokens"]:
    encoded = bpe.encode_batch_fast(documents)
    return np.concatenate([np.asarray(document.ids, np.uint16) for document in encoded])


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


def _cache_key(text: Text, size: int) -> str:
    made_from = f"{text.digest} bpe:{size} tokenizers {version('tokenizers')}"
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def _load(file: Path) -> tuple[Tokenizer, np.ndarray, np.ndarray] | None:
    """Reads a cached encoding; returns None if it is missing or damaged."""
    try:
        # numpy itself would leave a damaged file open
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            bpe = Tokenizer.from_str(stored["tokenizer"].tobytes().decode())
            return bpe, stored["train"], stored["held_out"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _save(file: Path, bpe: Tokenizer, train: np.ndarray, held_out: np.ndarray) -> None:
    """Writes a temporary file and renames it, so that no reader sees an incomplete file."""
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
