"""Checkpoints of a run: its state and its position in the data, written whole or not at all.

Orbax writes each checkpoint into a temporary folder and renames it. It would load some damaged
files without notice, so the hashes of a checkpoint's files lie beside them.
"""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from orbax.checkpoint import v1 as ocp

from common.errors import UsageError
from common.run_folder import write_whole

KEPT = 2
SEAL = "sha256.json"


class Checkpoints:
    """The last few checkpoints of one run, each in a folder named by its step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keep: Any = ocp.training.preservation_policies.LatestN(KEPT)  # typed for Orbax's older API
        self._orbax = ocp.training.Checkpointer(str(folder.absolute()), preservation_policy=keep)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, position: Any) -> Path:
        """Saves at a step, unless that step is saved already, and returns where.

        Args:
            step: number of updates done.
            state: any pytree of arrays.
            position: an iterator that Orbax can save, such as grain's.
        """
        folder = self._at(step)
        if self.latest != step:
            parts = {"state": _by_path(state), "position": position}
            self._orbax.save_checkpointables(step, parts, force=True)
            write_whole(folder / SEAL, json.dumps(_hashes(folder), indent=2))
        return folder

    def restore(self, state: Any, position: Any) -> tuple[int, Any]:
        """Returns the newest step and its state, and moves `position` to where it was.

        Args:
            state: a pytree with the structure, shapes, dtypes and shardings to restore to.
            position: an iterator over the same data; moved in place.

        Raises:
            UsageError: no checkpoint, or the newest is damaged or not of this structure.
        """
        step = self.latest
        if step is None:
            raise UsageError(f"{self.folder} holds no finished checkpoint; start with --overwrite")
        damage = _damage(self._at(step))
        if damage:
            older = [checkpoint.step for checkpoint in self._orbax.checkpoints[:-1]]
            remedy = f"resume from step {older[-1]}" if older else "start again with --overwrite"
            raise UsageError(f"{self._at(step)} is damaged ({damage}); remove it and {remedy}")
        wanted = _by_path(jax.tree.map(_abstract, state))
        try:
            loaded = self._orbax.load_checkpointables(
                step, {"state": wanted, "position": position}
            )["state"]
        except Exception as error:  # of whatever type tensorstore, Orbax or grain raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(f"{self._at(step)} cannot be restored: {reason}") from error
        return step, jax.tree.unflatten(
            jax.tree.structure(state), [loaded[name] for name in wanted]
        )

    def _at(self, step: int) -> Path:
        return self.folder / str(step)


def _by_path(tree: Any) -> dict[str, Any]:
    """Flattens a tree to names and leaves, which say what they are without this program."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _hashes(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SEAL)
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def _damage(folder: Path) -> str:
    """Says what is wrong with a checkpoint's files; nothing where all is well."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
    except (OSError, ValueError):
        return f"{SEAL} is missing or unreadable: half-written"
    found = _hashes(folder)
    changed = [name for name, digest in sealed.items() if found.get(name) != digest]
    return f"{changed[0]} is missing or changed" if changed else ""
