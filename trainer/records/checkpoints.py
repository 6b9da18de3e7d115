"""Checkpoints of a run: its state and its position in the data, written whole or not at all.

Orbax would load some damaged files without an error, so a checkpoint also stores the hashes of its
files. It gets its final name after both are written, because a process may be killed at any moment.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from trainer.devices import ONE_DEVICE, Devices
from trainer.errors import UsageError

KEPT = 2
SEAL = "sha256.json"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Checkpoints:
    """The last few checkpoints of one run, each in a folder named by its step."""

    folder: Path
    devices: Devices = ONE_DEVICE

    def steps(self) -> list[int]:
        """Lists the steps that were saved, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal())

    def save(self, step: int, state: Any, position: Any) -> Path:
        """Saves the checkpoint of a step, unless it exists already, and returns its folder.

        Args:
            step: number of updates done.
            state: any pytree of arrays.
            position: an iterator that Orbax can save, such as grain's.
        """
        target = self._at(step)
        if not target.exists():
            partial = target.with_name(f"{step}{PARTIAL}")
            if self.devices.first:
                for left in self.folder.glob(f"*{PARTIAL}*"):  # of a process that was killed
                    shutil.rmtree(left)
            self.devices.wait(f"step {step} can be saved")
            parts = {"state": _by_path(state), "position": position}
            ocp.save_checkpointables(str(partial.absolute()), parts)
            if self.devices.first:
                (partial / SEAL).write_text(json.dumps(_hashes(partial), indent=2))
                partial.rename(target)
        if self.devices.first:
            for old in self.steps()[:-KEPT]:
                shutil.rmtree(self._at(old))
        self.devices.wait(f"step {step} is saved")
        return target

    def restore(self, state: Any, position: Any) -> tuple[int, Any]:
        """Returns the newest step and its state, and moves `position` to where it was.

        Args:
            state: a pytree with the structure, shapes, dtypes and shardings to restore to.
            position: an iterator over the same data; moved in place.

        Raises:
            UsageError: there is no checkpoint, or the newest is damaged or has another structure.
        """
        step, source = self._newest()
        return step, _load(source, state, {"position": position})

    def restore_part(self, state: Any) -> Any:
        """Returns the part of the newest state that has the names of `state`, as `restore` does.

        Raises:
            UsageError: as in `restore`, or the arrays saved under the same top-level names differ.
        """
        _, source = self._newest()
        wanted = {(name, leaf.shape) for name, leaf in _by_path(state).items()}
        roots = {name.split("/")[0] for name, _ in wanted}
        described = ocp.metadata(str(source.absolute()), "state").metadata
        everything = {(name, tuple(array.shape)) for name, array in described.items()}
        saved = {(name, shape) for name, shape in everything if name.split("/")[0] in roots}
        if saved != wanted:
            name, _ = min(saved ^ wanted)
            raise UsageError(f"{source} is of another model: it differs in {name}")
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            return _load(source, state, {})

    def _newest(self) -> tuple[int, Path]:
        """Returns the newest step and its folder, after checking its files for damage."""
        *older, step = self.steps() or [None]
        if step is None:
            raise UsageError(f"{self.folder} holds no checkpoint; start again with --overwrite")
        source = self._at(step)
        damage = _damage(source)
        if damage:
            remedy = f"resume from step {older[-1]}" if older else "start again with --overwrite"
            raise UsageError(f"{source} is damaged ({damage}); remove it and {remedy}")
        return step, source

    def _at(self, step: int) -> Path:
        return self.folder / str(step)


def _load(source: Path, state: Any, parts: dict[str, Any]) -> Any:
    """Returns the arrays of `state` from a checkpoint, and restores the iterators in `parts`."""
    wanted = _by_path(jax.tree.map(_abstract, state))
    try:
        loaded = ocp.load_checkpointables(str(source.absolute()), {"state": wanted, **parts})
    except Exception as error:  # tensorstore, Orbax and grain raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{source} cannot be restored: {reason}") from error
    leaves = [loaded["state"][name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _by_path(tree: Any) -> dict[str, Any]:
    """Flattens a tree to leaves by path, so that a checkpoint is readable without this program."""
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
    """Returns what is wrong with a checkpoint's files, or an empty string."""
    try:
        sealed = dict(json.loads((folder / SEAL).read_text()))
    except (OSError, ValueError, TypeError):
        return f"{SEAL} is missing or unreadable"
    found = _hashes(folder)
    changed = [name for name, digest in sealed.items() if found.get(name) != digest]
    return f"{changed[0]} is missing or changed" if changed else ""
