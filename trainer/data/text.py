"""Text from files on disk, split into a training and a held-out part.

Whole files are held out, up to 5 % of all bytes. They are chosen by the hash of their names, so the
split depends only on the files. If files are too few or too large for that, the last 5 % of the
text are held out.
"""

import hashlib
import os
import sysconfig
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from trainer.errors import UsageError

HELD_OUT_FRACTION = 0.05
NOT_SOURCE = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """Documents for training and for the held-out loss."""

    train: list[str]
    held_out: list[str]
    name: str
    """Where the text came from, in a few words."""

    @property
    def amount(self) -> str:
        """The size of both parts, in one line."""
        train, held_out = (
            f"{sum(map(len, part)) / 1e6:.2f} M characters in {len(part)} files"
            for part in (self.train, self.held_out)
        )
        return f"training text: {train}; held out: {held_out}"

    @property
    def digest(self) -> str:
        """Hash of every character and of the split."""
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            for document in [*part, ""]:
                digest.update(hashlib.sha256(document.encode()).digest())
        return digest.hexdigest()


def read_text(path: Path | None, pattern: str = "*") -> Text:
    """Reads a file, or the matching files of a folder; None reads Python's standard library."""
    if path is None:
        name, root = "Python's standard library", Path(sysconfig.get_path("stdlib"))
        files = _matching(root, "*.py", NOT_SOURCE)
    else:
        name, root = path.resolve().name, path
        files = _matching(root, pattern) if root.is_dir() else [root]
    if not root.exists():
        raise UsageError(f"--data {root} does not exist; give a file or folder of text")
    documents = {file.relative_to(root).as_posix(): _read_document(file) for file in files}
    found = {file: text for file, text in documents.items() if text}
    if not found:
        matching = "" if pattern == "*" else f" in files named {pattern}"
        raise UsageError(f"{root} holds no UTF-8 text{matching}; give --data a file or folder")
    return Text(*split_documents(found), name)


def split_documents(documents: dict[str, str]) -> tuple[list[str], list[str]]:
    """Splits named documents into a training and a held-out list, each sorted by name."""
    sizes = {name: len(document.encode()) for name, document in documents.items()}
    wanted = HELD_OUT_FRACTION * sum(sizes.values())
    chosen: set[str] = set()
    taken = 0
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if taken + sizes[name] <= wanted:
            chosen.add(name)
            taken += sizes[name]
        if taken > 0.9 * wanted:  # going on would only collect the smallest files
            break
    names = sorted(documents)
    if taken < 0.5 * wanted:
        whole = "\n".join(documents[name] for name in names)
        cut = round(len(whole) * (1 - HELD_OUT_FRACTION))
        return [whole[:cut]], [whole[cut:]]
    train = [documents[name] for name in names if name not in chosen]
    return train, [documents[name] for name in names if name in chosen]


def _matching(root: Path, pattern: str, left_out: Collection[str] = ()) -> list[Path]:
    """Lists the matching files in an order that is the same on every machine.

    Skips hidden folders and those in `left_out`, because a Python installation may contain tens of
    thousands of files that are not its own.
    """
    files = []
    for folder, inside, names in os.walk(root):
        inside[:] = [name for name in inside if name not in left_out and not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if fnmatchcase(file.name, pattern) and file.is_file())


def _read_document(file: Path) -> str:
    """Returns a file's text, or an empty string if the file is binary or not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    try:
        return "" if b"\0" in data else data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
