"""A run that is killed repeatedly, also while it saves, ends like an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from trainer.data.tokens import Tokens
from trainer.data.windows import training_batches
from trainer.records.checkpoints import PARTIAL, Checkpoints
from trainer.records.run_folder import RunFolder

pytestmark = pytest.mark.slow

TINY = "--width 16 --layers 1 --heads 2 --context 16 --batch-size 4 --sample-tokens 1 --quiet"
KILLS = 20
STEPS_PER_KILL = 10  # longer than any run between two kills
START_SECONDS = 4.0  # about the time of imports, a restore and reading compiled programs


def test_a_run_killed_at_random_ends_with_the_bits_of_an_unbroken_one(texts, tmp_path):
    steps = STEPS_PER_KILL * KILLS
    settings = f"{TINY} --data {texts} --steps {steps} --eval-every {steps}"
    draw = np.random.default_rng(KILLS)
    # The uninterrupted run fills the cache of compiled programs, so other runs start faster.
    assert start(tmp_path, f"{settings} --out unbroken").wait(timeout=300) == 0
    settings += " --out killed --checkpoint-every 1"
    folder = RunFolder(tmp_path / "killed")
    half_written = 0
    for moment in islice(cycle([while_saving, while_training, while_starting]), KILLS):
        run = start(tmp_path, f"{settings} {how_to_go_on(folder)}")
        try:
            moment(folder, draw, lambda run=run: run.poll() is None)
        finally:
            run.kill()
        assert run.wait() == -signal.SIGKILL
        half_written += any(folder.checkpoints.glob(f"*{PARTIAL}*"))
    assert half_written >= KILLS // 10
    assert start(tmp_path, f"{settings} {how_to_go_on(folder)}").wait(timeout=300) == 0
    assert what_remains(folder, steps) == what_remains(RunFolder(tmp_path / "unbroken"), steps)


def start(folder: Path, arguments: str) -> subprocess.Popen:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-W", "error", "-m", "trainer", "lm", *arguments.split()]
    return subprocess.Popen(command, cwd=folder, env=os.environ | cache, stdout=subprocess.DEVNULL)


def how_to_go_on(folder: RunFolder) -> str:
    """Returns the option that continues the run, or that restarts it if there is no checkpoint."""
    return "--resume" if Checkpoints(folder.checkpoints).steps() else "--overwrite"


# Moments to kill; each waits until it occurs, while `alive` returns True.


def while_starting(folder: RunFolder, draw: np.random.Generator, alive: Callable[[], bool]) -> None:
    started, end = starts(folder), time.monotonic() + draw.uniform(0, START_SECONDS)
    wait(lambda: started() or time.monotonic() > end, alive)


def while_training(folder: RunFolder, draw: np.random.Generator, alive: Callable[[], bool]) -> None:
    wait(starts(folder), alive)
    rows = count_rows(folder) + draw.integers(1, 4)
    wait(lambda: count_rows(folder) >= rows, alive)
    time.sleep(draw.uniform(0, 0.05))


def while_saving(folder: RunFolder, draw: np.random.Generator, alive: Callable[[], bool]) -> None:
    while_training(folder, draw, alive)
    wait(lambda: any(folder.checkpoints.glob(f"*{PARTIAL}*")), alive)
    time.sleep(draw.uniform(0, 0.02))


def wait(for_what: Callable[[], bool], alive: Callable[[], bool]) -> None:
    while alive() and not for_what():
        time.sleep(0.001)


def starts(folder: RunFolder) -> Callable[[], bool]:
    """Returns a function that is True as soon as a new run has rewritten its metrics."""

    def written() -> int | None:
        try:
            return folder.metrics.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    before = written()
    return lambda: written() not in (None, before)


def count_rows(folder: RunFolder) -> int:
    return folder.metrics.read_text().count("\n")


def what_remains(folder: RunFolder, step: int) -> tuple[object, ...]:
    """Returns metrics by step, the bits of weights and optimizer, and the position in the data."""
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for row in rows:
        row.pop("items_per_second", None)
    checkpoint = folder.checkpoints / str(step)
    (position,) = (checkpoint / "position").iterdir()
    return rows, state_bits(checkpoint), position.read_text()


def state_bits(checkpoint: Path) -> dict[str, tuple[object, ...]]:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.metadata(checkpoint, "state").metadata,
    )
    arrays = {n: np.asarray(leaf) for n, leaf in ocp.load(checkpoint, wanted).items()}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


class Killed(BaseException):
    """Stands for a kill, for the code that it passes through."""


def killed(*arguments: object, **named: object) -> None:
    raise Killed


def killed_after(function: Callable) -> Callable:
    def call(*arguments: object, **named: object) -> None:
        function(*arguments, **named)
        raise Killed

    return call


@pytest.mark.parametrize(
    ("owner", "name", "death"),
    [
        (ocp, "save_checkpointables", killed_after),
        (Path, "write_text", killed_after),
        (Path, "rename", lambda rename: killed),
    ],
    ids=["before the hashes", "after the hashes", "at the renaming"],
)
def test_what_a_killed_save_leaves_is_never_loaded(tmp_path, monkeypatch, owner, name, death):
    batches = training_batches(
        Tokens(np.arange(100, dtype=np.uint16), np.arange(9, dtype=np.uint16), 1.0),
        context=4,
        batch_size=2,
        seed=0,
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weight": jax.numpy.full(3, 1.0)}, batches)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, death(getattr(owner, name)))
        with pytest.raises(Killed):
            checkpoints.save(2, {"weight": jax.numpy.full(3, 2.0)}, batches)
    assert (tmp_path / f"2{PARTIAL}").is_dir()
    step, state = checkpoints.restore({"weight": jax.numpy.zeros(3)}, batches)
    assert (step, state["weight"].tolist()) == (1, [1.0] * 3)

    checkpoints.save(2, {"weight": jax.numpy.full(3, 3.0)}, batches)
    step, state = checkpoints.restore({"weight": jax.numpy.zeros(3)}, batches)
    assert (step, state["weight"].tolist()) == (2, [3.0] * 3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2"]
