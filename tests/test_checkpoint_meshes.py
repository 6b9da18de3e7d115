"""A state saved on one mesh is restored on another, of other devices, layouts and processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import remeshing


def run(what: str, folder: Path, layout: str, *, devices: int, processes: int = 1) -> None:
    """Runs `remeshing.py` with so many devices, divided among so many processes."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
    }
    command = [sys.executable, "-W", "error", remeshing.__file__, what, str(folder), layout]
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
        assert f"{what} on {devices} devices of {processes} processes" in text


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def saved_on_eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    run("save", folder, "fsdp", devices=8)
    return folder


def test_saved_on_eight_devices_restored_on_one(saved_on_eight):
    assert jax.device_count() == 1
    remeshing.restore(saved_on_eight, "tensor")


def test_saved_on_eight_devices_restored_on_four(saved_on_eight):
    run("restore", saved_on_eight, "tensor", devices=4)


@pytest.mark.slow
def test_saved_by_one_process_restored_by_two(saved_on_eight):
    run("restore", saved_on_eight, "tensor", devices=4, processes=2)


@pytest.mark.slow
def test_saved_by_two_processes_restored_by_one(tmp_path):
    run("save", tmp_path, "fsdp", devices=8, processes=2)
    remeshing.restore(tmp_path, "tensor")
