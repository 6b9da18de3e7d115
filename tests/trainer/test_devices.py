"""Training on a mesh: shardings of parameters, several processes, and unusable meshes."""

import json
import math
import re
import subprocess

import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from trainer.devices import DeviceConfig, parameter_spec
from trainer.errors import TRAINER, UsageError

TINY = "--width 32 --layers 1 --heads 2 --context 32 --batch-size 8 --steps 4 --eval-every 4"
SUMS = 1e-5
"""What the order of sums over devices changes in a loss."""


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Returns the training and held-out losses of a run with these options."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("a few words that a small model can learn. " * 400)

    def run(options: str) -> list[float]:
        out = tmp_path_factory.mktemp("run")
        settings = f"{TINY} {options} --sample-tokens 1 --out {out} --data {text}"
        done = subprocess.run(
            [*TRAINER, "lm", *settings.split()],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [
            row[name] for row in rows for name in ("train/loss", "held_out/loss") if name in row
        ]

    return run


@pytest.mark.slow
def test_training_on_a_mesh_is_training_on_one_device(losses):
    one = losses("")
    assert len(one) == 5
    for options in ("--mesh fsdp=4,tensor=2", "--mesh fsdp=8 --processes 2"):
        assert losses(options) == pytest.approx(one, rel=SUMS)


@pytest.mark.parametrize(
    ("names", "shape", "sizes", "expected"),
    [
        ("attention/query/kernel", (64, 4, 16), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        ("attention/out/kernel", (4, 16, 64), {"fsdp": 4, "tensor": 2}, P("tensor", "fsdp")),
        ("mlp/down/kernel", (96, 64), {"tensor": 8}, P("tensor")),
        ("mlp/up/kernel", (64, 100), {"tensor": 8}, P()),  # 8 does not divide 100
        ("mlp/up/kernel", (63, 96), {"fsdp": 8}, P(None, "fsdp")),
        ("norm/scale", (64,), {"replica": 2, "fsdp": 4}, P("fsdp")),
        ("embed/embedding", (257, 64), {"data": 8}, P()),
        ("count", (), {"fsdp": 8}, P()),
    ],
)
def test_where_a_parameter_lies(names, shape, sizes, expected):
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    spec = parameter_spec(names.split("/"), shape, mesh)
    assert tuple(spec) == (*expected, *(None,) * (len(shape) - len(expected)))


def test_a_mesh_is_read_from_its_axes():
    config = DeviceConfig("replica=2,fsdp=4", processes=2)
    assert config.sizes == {"replica": 2, "fsdp": 4}
    assert math.prod(config.sizes.values()) == 8
    assert config.must_spawn
    assert not DeviceConfig("fsdp=8", coordinator="host:1", process_id=0, processes=2).must_spawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mesh": "fsdp"}, "--mesh fsdp: write axis=devices, separated by commas; the axes are"),
        ({"mesh": "pipe=2"}, "the axes are data, replica, fsdp, tensor"),
        ({"mesh": "fsdp=0"}, "--mesh fsdp=0: write axis=devices"),
        ({"mesh": "fsdp=2,fsdp=4"}, "--mesh fsdp=2,fsdp=4: name every axis once"),
        ({"processes": 2}, "several processes need a --mesh to share, such as --mesh fsdp=8"),
        ({"mesh": "fsdp=2", "processes": 0}, "--processes 0: give at least 1"),
        ({"mesh": "fsdp=2", "process_id": 1}, "--process-id needs --coordinator host:port"),
    ],
)
def test_devices_that_make_no_mesh_are_refused(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        DeviceConfig(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mesh fsdp=3", "a batch of 8 does not divide evenly over 3 devices"),
        ("--mesh fsdp=3 --processes 2", "--mesh fsdp=3 has 3 devices, which 2 processes do not"),
    ],
)
def test_what_does_not_divide_ends_in_one_line(tmp_path, options, message):
    settings = f"{TINY} {options} --out {tmp_path} --data {__file__}"
    run = subprocess.run([*TRAINER, "lm", *settings.split()], capture_output=True, text=True)
    assert run.returncode == 2
    assert message in run.stderr
