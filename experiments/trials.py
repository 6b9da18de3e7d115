"""Trials of an experiment: run each once, on a core of its own, and keep what it measured."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

Trial = TypeVar("Trial", bound=Any)
Measured = dict[str, Any]


@dataclass(frozen=True)
class Trials(Generic[Trial]):
    """What an experiment measured, a line of JSON for each trial.

    Args:
        kind: the dataclass of a trial; its fields are JSON values and identify the trial.
        run: maps a trial to its results, which are JSON values too; must be picklable.
        file: where the lines are kept.
        workers: how many trials run at once, at most one for each core. Each trial uses one core,
            so that results do not depend on `workers`. 0 runs the trials in this process.
    """

    kind: type[Trial]
    run: Callable[[Trial], Measured]
    file: Path
    workers: int = 1

    def saved(self) -> dict[Trial, Measured]:
        """Returns the saved results by trial."""
        if not self.file.exists():
            return {}
        rows = map(json.loads, self.file.read_text().splitlines())
        return {self.kind(**row["trial"]): row["measured"] for row in rows}

    def measure(self, trials: Iterable[Trial]) -> dict[Trial, Measured]:
        """Returns the results of `trials`; runs and saves those that are not saved yet."""
        wanted = list(dict.fromkeys(trials))
        known = self.saved()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for trial, measured, seconds in self._run([t for t in wanted if t not in known]):
            known[trial] = measured
            with self.file.open("a") as file:
                file.write(json.dumps({"trial": asdict(trial), "measured": measured}) + "\n")
            print(f"{seconds:5.0f} s  {trial}", flush=True)
        return {trial: known[trial] for trial in wanted}

    def _run(self, trials: list[Trial]) -> Iterator[tuple[Trial, Measured, float]]:
        if not trials or not self.workers:
            yield from ((trial, *_timed(self.run, trial)) for trial in trials)
            return
        processes = multiprocessing.get_context("spawn")
        cores = sorted(os.sched_getaffinity(0))[: self.workers]
        free = processes.Queue()
        for core in cores:
            free.put(core)
        with ProcessPoolExecutor(len(cores), processes, _keep_to_one_core, (free,)) as pool:
            futures = {pool.submit(_timed, self.run, trial): trial for trial in trials}
            for future in as_completed(futures):
                yield futures[future], *future.result()


def _keep_to_one_core(free: Any) -> None:
    """Binds this process to one core before JAX starts, so that JAX starts only one thread."""
    os.sched_setaffinity(0, {free.get()})


def _timed(run: Callable[[Trial], Measured], trial: Trial) -> tuple[Measured, float]:
    began = time.monotonic()
    return run(trial), time.monotonic() - began
