"""Which changes of the library no test notices.

python tests/mutation.py run           # hours; a change that is judged is not judged again
python tests/mutation.py run _tree …   # only of these modules
python tests/mutation.py again …       # puts what is left to all tests that there are now
python tests/mutation.py report        # the table of docs/reference/mutation.md

mutmut makes the changes, one expression at a time, under mutants/, and keeps the verdicts there:
`mutmut results` lists what is left and `mutmut show NAME` prints it. mutmut itself starts Python
and JAX for every change; here a few processes switch on one after the other.
"""

import hashlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from judging import RECORD
from mutmut.__main__ import create_mutants
from mutmut.configuration import config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir
from processes import QUICK, ROOT

JUDGES = 2
MUTANTS = ROOT / "mutants"
REACH = MUTANTS / "reach.json"
SURVIVED, KILLED, NO_TESTS, SUSPICIOUS, TIMEOUT = 0, 1, 33, 35, 36
"""As mutmut writes verdicts; suspicious is what survived, with slower tests still to run."""
LEFT = (SURVIVED, NO_TESTS, SUSPICIOUS)
PATIENCE = 15.0
"""CPU seconds of tests that `run` gives to a change."""
SLOW_START = 30.0
"""CPU seconds beyond what its tests take without it before a change is said never to end."""


class JudgeDiedError(Exception):
    """The change crashed the process, or ran for ever."""


@dataclass
class Judge:
    """A process that runs tests on request; another takes its place when it dies."""

    selection: Sequence[str]
    tests: list[str] = field(default_factory=list)
    process: Any = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "tests/judging.py", *self.selection],
            cwd=MUTANTS,
            env=os.environ | QUICK | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
        )
        self.tests = self._read()

    def ask(self, mutant: str, tests: Sequence[str], seconds: float) -> dict[str, Any]:
        if self.process is None:
            self.start()
        question = json.dumps({"mutant": mutant, "tests": list(tests), "seconds": seconds})
        print(question, file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()

    def _read(self) -> Any:
        for line in self.process.stdout:
            if line.startswith(("{", "[")):  # and not what pytest says of itself
                return json.loads(line)
        self.process.wait()
        self.process = None
        raise JudgeDiedError("the process that runs the tests ended; its output is above")


@dataclass(frozen=True)
class Reach:
    """Which tests call which function, and the CPU seconds of each."""

    tests: dict[str, list[str]]
    seconds: dict[str, float]
    noticed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """By module, the tests that have noticed a change of it so far."""

    def of(self, mutant: str) -> list[str]:
        """Returns the tests that call what is changed.

        First come those that have noticed other changes of its module, then the quickest.
        """
        changed = mutant.partition("__mutmut_")[0]
        noticed = self.noticed[module_of(mutant)]
        return sorted(
            self.tests.get(changed, ()),
            key=lambda test: (test not in noticed, self.seconds[test]),
        )

    def first(self, tests: Sequence[str], seconds: float) -> list[str]:
        """Returns the first tests, one at least, that take no more than so long together."""
        totals = accumulate(self.seconds[test] for test in tests)
        within = sum(total <= seconds for total in totals)
        return list(tests[: max(1, within)])


def run(modules: Sequence[str], opened: Collection[int | None], patience: float) -> None:
    """Judges the changes of some modules, or of all, on which there is one of these verdicts."""
    os.chdir(ROOT)
    generate()
    judges: dict[int, Judge] = {}

    def judge() -> Judge:
        """Returns the judge of this thread."""
        selection = config().pytest_add_cli_args_test_selection
        return judges.setdefault(threading.get_ident(), Judge(selection))

    with ThreadPoolExecutor(JUDGES) as pool:
        reach = measured_reach(pool, judge)
        saving = threading.Lock()

        def settle(data: SourceFileMutationData, mutant: str) -> None:
            verdict, failed, seconds = judged(judge(), mutant, reach, patience)
            with saving:
                data.exit_code_by_key[mutant] = verdict
                data.save()
                print(f"{seconds:5.1f} s  {mutant}  {failed or 'is left'}", flush=True)

        waiting = [
            pool.submit(settle, data, mutant)
            for data in mutants_of(modules)
            for mutant, verdict in data.exit_code_by_key.items()
            if verdict in opened
        ]
        for each in waiting:
            each.result()
    for each in judges.values():
        each.close()


def generate() -> None:
    """Writes every change under mutants/; the verdict on a function that is as it was stays."""
    set_mutant_under_test("mutant_generation")
    copy_src_dir()
    copy_also_copy_files()
    create_mutants(multiprocessing.cpu_count())
    set_mutant_under_test(None)
    del os.environ["MUTANT_UNDER_TEST"]


def measured_reach(pool: ThreadPoolExecutor, judge: Any) -> Reach:
    """Runs every test once without a change; what fails then, for it wants one device, is left out.

    The answer is kept until another file of the library or the tests changes.
    """
    now = hashlib.sha256()
    for path in sorted((*Path("muon_jax").glob("*.py"), *Path("tests").glob("*.py"))):
        if path.name != Path(__file__).name:
            now.update(path.read_bytes())
    if REACH.exists() and (kept := json.loads(REACH.read_text()))["of"] == now.hexdigest():
        return Reach(kept["tests"], kept["seconds"])

    def reached(test: str) -> dict[str, Any]:
        return judge().ask(RECORD, [test], 600)

    def all_tests() -> list[str]:
        judge().start()
        return judge().tests

    names = pool.submit(all_tests).result()
    tests, seconds = defaultdict(list), {}
    for name, found in zip(names, pool.map(reached, names), strict=True):
        if found["failed"]:
            print("fails without any change:", name, file=sys.stderr)
            continue
        seconds[name] = found["seconds"]
        for function in found["functions"]:
            tests[function].append(name)
    REACH.write_text(json.dumps({"of": now.hexdigest(), "tests": tests, "seconds": seconds}))
    return Reach(tests, seconds)


def judged(
    judge: Judge, mutant: str, reach: Reach, patience: float
) -> tuple[int, str | None, float]:
    """Returns the verdict, what noticed the change, and the CPU seconds that this took."""
    tests = reach.of(mutant)
    if not tests:
        return NO_TESTS, None, 0.0
    first = reach.first(tests, patience)
    limit = 2 * sum(reach.seconds[test] for test in first) + SLOW_START
    try:
        found = judge.ask(mutant, first, limit)
    except JudgeDiedError:
        return TIMEOUT, "never ends, or crashes", limit
    if found["failed"]:
        reach.noticed[module_of(mutant)].add(found["failed"])
        return KILLED, found["failed"], found["seconds"]
    return SURVIVED if len(first) == len(tests) else SUSPICIOUS, None, found["seconds"]


def module_of(mutant: str) -> str:
    return mutant.split(".")[1]


def mutants_of(modules: Sequence[str] = ()) -> list[SourceFileMutationData]:
    """Reads the changes of some modules, in that order, or of all, with the verdicts on them."""
    found = {}
    for path in sorted(map(Path, config().only_mutate)):
        found[path.stem] = SourceFileMutationData(path=path)
        found[path.stem].load()
    if strangers := set(modules) - set(found):
        sys.exit(f"{', '.join(sorted(strangers))}: give of {', '.join(found)}")
    return [found[module] for module in modules or found]


def report() -> str:
    """Tabulates how many changes of each module are judged, noticed and left."""
    rows = ["| module | changes | judged | noticed | left |", "|---|---:|---:|---:|---:|"]
    total = Counter()
    for data in mutants_of():
        verdicts = data.exit_code_by_key.values()
        left = sum(verdict in LEFT for verdict in verdicts)
        judged = sum(verdict is not None for verdict in verdicts)
        row = {"changes": len(verdicts), "judged": judged, "noticed": judged - left, "left": left}
        total.update(row)
        rows.append(f"| `{data.path.stem}` | {' | '.join(map(str, row.values()))} |")
    return "\n".join([*rows, f"| all | {' | '.join(map(str, total.values()))} |"])


if __name__ == "__main__":
    command, *modules = sys.argv[1:] or ["run"]
    if command == "run":
        run(modules, [None], PATIENCE)
    elif command == "again":
        run(modules, LEFT, math.inf)
    elif command != "report":
        sys.exit(f"{command}: give run, again or report")
    os.chdir(ROOT)
    print(report())
