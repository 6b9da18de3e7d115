"""Inputs of the benchmarks: models, layouts and topologies."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec as P

from benchmarks import models
from benchmarks.topologies import UnavailableError, compile_step, devices_of


def test_summing_leaves_lie_crosswise():
    layout = models.LAYOUTS["fsdp × tensor"]
    assert layout.sizes(8) == {"fsdp": 4, "tensor": 2}
    assert layout.spec("up", 2) == P("fsdp", "tensor")
    assert layout.spec("down", 2) == P("tensor", "fsdp")
    assert layout.spec("up", 3) == P(None, "fsdp", "tensor")
    assert layout.spec("up", 1) == P()


def test_experts_lie_on_their_axis():
    assert models.LAYOUTS["expert"].spec("up", 3) == P("expert", None, "tensor")
    assert models.LAYOUTS["expert"].spec("q", 2) == P(None, "tensor")


def test_a_scanned_model_has_the_layers_first():
    model = models.scanned(models.transformer(3, 8))
    assert model == {
        "layers": dict.fromkeys("qkvo", (3, 8, 8)) | {"up": (3, 8, 32), "down": (3, 32, 8)}
    }


def test_a_step_is_compiled_for_one_device():
    params = models.place(models.abstract(models.fused_transformer(1, 8)), jax.devices()[0])
    figures = compile_step(optax.adam(0.1), params, None)
    assert figures.aliased >= 3 * 12 * 8**2 * 4  # parameters and both moments
    assert figures.program.collectives == ()
    assert figures.program.lines > 10


@pytest.mark.parametrize(
    ("topology", "raised", "line"),
    [
        (
            "v5e:2x4",
            RuntimeError("JAX TPU support not installed; cannot generate TPU topology.\nSee …"),
            "v5e:2x4: no TPU compiler is installed; pip install --group tpu",
        ),
        (
            "v9:2x2",
            RuntimeError("INVALID_ARGUMENT: Invalid TPU external name: TPU v9\n…"),
            "v9:2x2: no such topology (INVALID_ARGUMENT: Invalid TPU external name: TPU v9); "
            "give one like v5e:2x4, v5p:2x2x2, v6e:16x16 or h100:8",
        ),
        (
            "h100:8",
            NotImplementedError("topology not implemented for cuda"),
            "h100:8: no CUDA compiler is installed; "
            "pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12",
        ),
    ],
)
def test_a_missing_compiler_is_one_line(monkeypatch, topology, raised, line):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    devices_of.cache_clear()
    with pytest.raises(UnavailableError) as found:
        devices_of(topology)
    assert str(found.value) == line


# The benchmark for devices, run on a CPU.

BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys(["flax", "matplotlib", "tyro"]))
runpy.run_module("benchmarks.device", run_name="__main__", alter_sys=True)
"""


def run_device(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_benchmark_for_devices_writes_its_tables_with_no_more_than_this_package():
    run = run_device("--shapes", "1x8x16", "--widths", "8", "--layers", "1")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "# cpu"
    assert [line for line in lines if line.startswith("##")] == [
        "## Polar map, 1x8x16",
        "## Step, 1 layers of width 8",
    ]
    rows = [line.split("|")[1:-1] for line in lines if line.startswith(("| optax", "| muon_jax"))]
    names = ["optax", "muon_jax, bfloat16", "muon_jax, float32"]
    assert [row[0].strip() for row in rows] == names * 2
    assert all(float(cell) >= 0 for row in rows for cell in row[1:])


def test_the_benchmark_for_devices_says_that_there_is_none():
    run = run_device()
    assert run.returncode == 2
    assert run.stdout.splitlines() == [
        "device.py: JAX found no accelerator; give small --shapes and --widths for a CPU"
    ]
