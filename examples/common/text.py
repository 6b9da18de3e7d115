"""Text from files on disk, split into a training and a held-out part.

Whole files are held out, up to 5 % of all bytes, chosen by the hash of their names: the split
depends on nothing but the files. Where files are too few or too large for that, the last 5 % of
the text are held out.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

HELD_OUT_FRACTION = 0.05
NOT_SOURCE = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """Documents for training and for the held-out loss."""

    train: list[str]
    held_out: list[str]
    name: str
    """Where the text came from, for people."""

    @property
    def amount(self) -> str:
        """How much of it there is, in a line."""
        train, held_out = (
            f"{len(part)} documents, {sum(map(len, part)) / 1e6:.2f} M characters"
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


def read_text(path: Path | None) -> Text:
    """Reads a file or a folder; None reads the source of Python's own standard library."""
    root = Path(sysconfig.get_path("stdlib")) if path is None else path
    files = _python_files(root) if path is None else _text_files(root)
    documents = {}
    for file in files:
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        document = _read_document(file)
        if document:
            documents[name] = document
    if not documents:
        what = "Python source" if path is None else "UTF-8 text"
        raise UsageError(f"{_option(path, root)} holds no {what}; give --data a file or folder")
    train, held_out = split_documents(documents)
    return Text(train, held_out, "Python's standard library" if path is None else path.name)


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


def _option(path: Path | None, root: Path) -> str:
    return f"the standard library at {root}" if path is None else f"--data {path}"


def _python_files(root: Path) -> list[Path]:
    files = root.rglob("*.py")
    return sorted(f for f in files if NOT_SOURCE.isdisjoint(f.relative_to(root).parts))


def _text_files(root: Path) -> list[Path]:
    if root.is_dir():
        hidden = (f for f in root.rglob("*") if f.is_file())
        return sorted(
            f for f in hidden if not any(p.startswith(".") for p in f.relative_to(root).parts)
        )
    if not root.exists():
        raise UsageError(f"--data {root} does not exist; give a file or folder of text")
    return [root]


def _read_document(file: Path) -> str | None:
    """Returns a file's text, or None for one that is empty, binary or not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8") or None
    except UnicodeDecodeError:
        return None
