"""A state saved on one mesh is restored on a mesh with other devices, layouts or processes."""

from pathlib import Path

import jax
import pytest
import remeshing
from processes import run_on_devices

pytestmark = pytest.mark.slow


def run(what: str, folder: Path, layout: str, *, devices: int, processes: int = 1) -> None:
    printed = run_on_devices(
        remeshing.__file__, what, folder, layout, devices=devices, processes=processes
    )
    for text in printed:
        assert f"{what} on {devices} devices of {processes} processes" in text


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


def test_saved_by_one_process_restored_by_two(saved_on_eight):
    run("restore", saved_on_eight, "tensor", devices=4, processes=2)


def test_saved_by_two_processes_restored_by_one(tmp_path):
    run("save", tmp_path, "fsdp", devices=8, processes=2)
    remeshing.restore(tmp_path, "tensor")
