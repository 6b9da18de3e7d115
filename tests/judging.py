"""Runs tests again and again, each time with another change of mutmut's switched on.

`mutation.py` starts it inside mutants/. It answers with the names of all tests; then every line
that it reads, {"mutant", "tests", "seconds"}, gets one: {"failed", "functions", "seconds"}. A
change that takes more CPU seconds than that ends the process.
"""

import functools
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import pytest
from _pytest.runner import runtestprotocol
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

DEVICES = 8
RECORD = "stats"
"""By this name mutmut switches no change on, and keeps what functions were called."""


class Cases(dict[str, Any]):
    """The outcomes of the mesh's cases, each measured here when first asked for."""

    def __missing__(self, name: str) -> Any:
        from tests.mesh_cases import CASES, outcome  # noqa: PLC0415 (pytest reads the tests first)

        self[name] = json.loads(json.dumps(outcome(CASES[name])))
        return self[name]


class Judge:
    """A plugin of pytest that runs no test but those it is asked for."""

    def __init__(self, questions: TextIO, answers: TextIO):
        self.questions, self.answers = questions, answers
        self.cases = Cases()
        self.caches: list[Any] = []
        self.compiled = True
        jax.monitoring.register_event_duration_secs_listener(self._has_compiled)

    def _has_compiled(self, event: str, duration: float, **_: Any) -> None:
        self.compiled = True

    def pytest_configure(self) -> None:
        import processes  # noqa: PLC0415 (it is on the path where pytest is)

        processes.measured_by = lambda module: self.cases

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.caches = own_caches()
        self.answer(list(items))
        for line in self.questions:
            question = json.loads(line)
            chosen = [items[name] for name in question["tests"]]
            self.answer(self.judge(question["mutant"], chosen, question["seconds"]))
        return True

    def answer(self, found: Any) -> None:
        print(json.dumps(found), file=self.answers, flush=True)

    def judge(self, mutant: str, items: Sequence[Any], seconds: float) -> dict[str, Any]:
        """Runs tests until one fails, with all forgotten that was computed without the change."""
        self.forget()
        state()._stats.clear()
        set_mutant_under_test(mutant)
        start = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(start + seconds) + 1, resource.RLIM_INFINITY))
        failed = next((item.nodeid for item in items if fails(item)), None)
        set_mutant_under_test("")
        return {
            "failed": failed,
            "functions": sorted(state()._stats),
            "seconds": time.process_time() - start,
        }

    def forget(self) -> None:
        self.cases.clear()
        if self.compiled:
            jax.clear_caches()
            self.compiled = False
        for cache in self.caches:
            cache.cache_clear()


def fails(item: Any) -> bool:
    """Runs one test with fixtures of its own, those of the session too."""
    item._initrequest()
    return any(report.failed for report in runtestprotocol(item, nextitem=None, log=False))


def own_caches() -> list[Any]:
    """Returns what the library and its tests keep between calls."""
    here = {path.stem for path in Path("tests").glob("*.py")}
    found = [
        each
        for each in gc.get_objects()
        if type(each) is functools._lru_cache_wrapper
        and (each.__module__ or "").partition(".")[0] in {"muon_jax", "tests", *here}
    ]
    gc.collect()
    gc.freeze()
    return found


def main(selection: Sequence[str]) -> int:
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    sys.path.insert(0, os.getcwd())
    set_mutant_under_test("")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    plugins = [Judge(questions, answers)]
    return int(pytest.main(["--rootdir=.", "--quiet", "--tb=no", *selection], plugins=plugins))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
