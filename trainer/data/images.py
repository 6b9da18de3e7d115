"""Images with their classes: scikit-learn's digits, or a folder in one of two official formats.

Fashion-MNIST and MNIST come as gzip IDX files, CIFAR-10 in its binary version. CIFAR-10's version
for Python raises an error, because it is pickled and reading a pickle may run any code.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from sklearn.datasets import load_digits

from trainer.errors import UsageError

DIGITS_HELD_OUT_EVERY = 5  # the digits have no held-out part of their own

IDX = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "held_out": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
IDX_MAGIC = bytes([0, 0, 8])  # two zeros, then the code of unsigned bytes; the rank follows

CIFAR = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "held_out": ("test_batch.bin",),
}
CIFAR_PICKLED = "data_batch_1"
CIFAR_SHAPE = (3, 32, 32)  # one label byte, then the red, green and blue planes, row by row


@dataclass(frozen=True)
class Labelled:
    """Images and their classes, as grain reads them."""

    images: UInt8[np.ndarray, "count height width channels"]
    labels: Int32[np.ndarray, "count"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "label": self.labels[index]}


@dataclass(frozen=True)
class Images:
    """Images to train on, and others that are held out."""

    name: str
    train: Labelled
    held_out: Labelled

    @property
    def classes(self) -> int:
        return int(max(self.train.labels.max(), self.held_out.labels.max())) + 1

    @property
    def amount(self) -> str:
        height, width, channels = self.train.images.shape[1:]
        return (
            f"{len(self.train):,} images of {height} × {width} × {channels} in {self.classes} "
            f"classes for training, {len(self.held_out):,} held out"
        )

    @property
    def digest(self) -> str:
        parts = (self.train, self.held_out)
        whole = b"".join(array.tobytes() for part in parts for array in (part.images, part.labels))
        return hashlib.sha256(whole).hexdigest()


def read_images(folder: Path | None) -> Images:
    """Reads a folder, whose file names determine the format, or scikit-learn's digits.

    Raises:
        UsageError: the folder holds neither format, or a file of it is missing or damaged.
    """
    if folder is None:
        return _digits()
    if not folder.is_dir():
        raise UsageError(f"--data-dir {folder} is no folder; give one of images, or leave it out")
    for files, read in ((IDX, _read_idx_pair), (CIFAR, _read_cifar)):
        wanted = [name for part in files.values() for name in part]
        missing = [name for name in wanted if not (folder / name).is_file()]
        if not missing:
            parts = {part: read(folder, names) for part, names in files.items()}
            return Images(folder.name, **parts)
        if len(missing) < len(wanted):
            raise UsageError(f"--data-dir {folder} lacks {', '.join(missing)}")
    if (folder / CIFAR_PICKLED).exists():
        raise UsageError(
            f"--data-dir {folder} holds pickles, and reading a pickle may run any code; "
            "give cifar-10-batches-bin, from CIFAR-10's binary version"
        )
    raise UsageError(
        f"--data-dir {folder} holds no images that this program knows: it looks for "
        f"{IDX['train'][0]} and its three companions (Fashion-MNIST), or for {CIFAR['train'][0]} "
        f"to {CIFAR['train'][-1]} and {CIFAR['held_out'][0]} (CIFAR-10)"
    )


def _digits() -> Images:
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    held_out = np.arange(len(labels)) % DIGITS_HELD_OUT_EVERY == 0
    return Images(
        "scikit-learn's digits",
        Labelled(images[~held_out], labels[~held_out]),
        Labelled(images[held_out], labels[held_out]),
    )


def _read_idx_pair(folder: Path, names: tuple[str, ...]) -> Labelled:
    images, labels = (_read_idx(folder / name) for name in names)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UsageError(
            f"--data-dir {folder}: {names[0]} has shape {images.shape} and {names[1]} "
            f"{labels.shape}, but every image has one label"
        )
    return Labelled(images[..., None], labels.astype(np.int32))


def _read_idx(file: Path) -> UInt8[np.ndarray, "..."]:
    """Reads the format of MNIST: magic number, rank, sizes in four bytes each, then all bytes."""
    try:
        with gzip.open(file) as opened:
            data = opened.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{file} is no sound gzip file: {error}") from error
    begin = 4 + 4 * int.from_bytes(data[3:4])
    shape = [int.from_bytes(data[at : at + 4]) for at in range(4, begin, 4)]
    if data[:3] != IDX_MAGIC or len(data) != begin + prod(shape):
        raise UsageError(f"{file} is no IDX file of unsigned bytes, or a part of it is missing")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _read_cifar(folder: Path, names: tuple[str, ...]) -> Labelled:
    record = 1 + prod(CIFAR_SHAPE)
    whole = []
    for name in names:
        data = np.frombuffer((folder / name).read_bytes(), np.uint8)
        if not len(data) or len(data) % record:
            raise UsageError(
                f"{folder / name} has {len(data)} bytes, no multiple of the {record} of an image "
                "with its label"
            )
        whole.append(data.reshape(-1, record))
    records = np.concatenate(whole)
    images = records[:, 1:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return Labelled(images, records[:, 0].astype(np.int32))
