"""Runs code on other devices, in one process or in several that gloo connects."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest

ROOT = Path(__file__).parent.parent
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "OPENBLAS_NUM_THREADS": "1"}
"""Of LLVM alone: the partitioned program, which is what is measured, stays the same."""


def measured_by(module: str, *arguments: str) -> Any:
    """Runs a module of the tests in a new process, and returns the JSON that it prints."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"tests.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | QUICK,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def fast_alone(request: pytest.FixtureRequest, file: str) -> list[str]:
    """Returns the argument that skips slow cases, if no slow test of a file is selected."""
    here = (item for item in request.session.items if item.path == Path(file))
    return [] if any(item.get_closest_marker("slow") for item in here) else ["--fast"]


def measured_once(module: str, *arguments: str, folder: Path, run: str) -> Any:
    """Returns the result of `measured_by`; the first pytest worker runs it for all workers.

    Args:
        module: a module of the tests.
        arguments: its command line.
        folder: a folder that the workers share.
        run: a name that only this run of the tests has.
    """
    file = folder / f"{module}-{run}.json"
    try:
        (folder / f"{module}-{run}.lock").touch(exist_ok=False)
    except FileExistsError:
        deadline = time.monotonic() + 1800
        while not file.exists():
            assert time.monotonic() < deadline, f"no other worker has measured {module}"
            time.sleep(0.5)
        return json.loads(file.read_text())
    try:
        found = measured_by(module, *arguments)
    except AssertionError as problem:
        found = {"failed": str(problem)}
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(found))
    unfinished.rename(file)
    return found


def run_on_devices(
    script: str | None, *arguments: str | Path, devices: int, processes: int = 1
) -> list[str]:
    """Runs a script on a number of devices, divided among a number of processes.

    If there are several processes, each gets an address, their number and its index for `join`.

    Returns:
        The output of each process.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{QUICK['XLA_FLAGS']} "
        f"--xla_force_host_platform_device_count={devices // processes}",
    }
    command = [sys.executable, "-W", "error", str(script), *map(str, arguments)]
    address = f"127.0.0.1:{free_port()}"
    groups = [[address, f"{processes}", f"{i}"] if processes > 1 else [] for i in range(processes)]
    running = [
        subprocess.Popen(
            [*command, *group],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for group in groups
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, text in zip(running, printed, strict=True):
        assert process.returncode == 0, text
    return printed


def join(group: Sequence[str]) -> None:
    """Joins the other processes, if the script was given any."""
    if group:
        address, count, index = group
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, num_processes=int(count), process_id=int(index))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
