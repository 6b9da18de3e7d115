"""Two processes with four devices each make the updates of one process with eight."""

from pathlib import Path

import numpy as np
import pytest
import shared_updates
from processes import run_on_devices

pytestmark = pytest.mark.slow


def read(folder: Path, processes: int) -> dict[str, np.ndarray]:
    held: dict[str, np.ndarray] = {}
    for index in range(processes):
        with np.load(folder / f"{index}_of_{processes}.npz") as file:
            held |= dict(file)
    return held


def test_an_update_in_two_processes_is_that_in_one_to_the_last_bit(tmp_path):
    run_on_devices(shared_updates.__file__, tmp_path, devices=8)
    run_on_devices(shared_updates.__file__, tmp_path, devices=8, processes=2)
    one, two = read(tmp_path, 1), read(tmp_path, 2)
    assert one.keys() == two.keys()
    assert len(one) == 8 * len(shared_updates.LAYOUTS) * len(shared_updates.SHAPES)
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []
