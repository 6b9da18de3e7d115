"""Writes the programs for `tests/diagnostics/test_hlo.py`, without unused parts.

    python -m tests.golden.write_hlo cpu
    python -m tests.golden.write_hlo tpu    # after pip install --group tpu
    python -m tests.golden.write_hlo cuda   # after pip install jax-cuda12-plugin jax-cuda12-pjrt \
                                            #   nvidia-cuda-nvcc-cu12

One file for each, `hlo/PLATFORM.txt`: the same program on eight devices, as 4 × 2.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.topologies import devices_of

TOPOLOGIES = {"tpu": "v5e:2x4", "cuda": "h100:8"}
CONFIG = re.compile(r", (backend_config=)(\{.*\})$")
UNREAD = re.compile(r", (?:metadata|frontend_attributes)=\{[^{}]*\}")
READ = ("known_trip_count", "async_collective_fusion_config")


def program(mesh: Mesh) -> Any:
    """Computes a sum over shards, a product beside a gather, two loops and a branch."""

    def moved(x: Any, *spec: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def turn(x: Any, y: Any) -> Any:
        return moved(jnp.tanh(x @ y), "a", None)

    def nest(i: Any, x: Any) -> Any:
        return jax.lax.fori_loop(1, 7, lambda j, x: x * j + i, turn(x, x))

    def run(x: Any, y: Any, n: Any) -> Any:
        summed = moved(y.T @ y, "a", None)
        gathered = moved((x + 1).T, None, None), moved(x, None, "b") @ y
        counted = jax.lax.fori_loop(0, 5, lambda _, x: turn(x, y), x)
        nested = jax.lax.fori_loop(2, n, nest, x)
        branch = jax.lax.cond(n > 3, lambda: turn(x, y), lambda: turn(turn(x, x), x))
        return summed, gathered, counted, nested, branch

    return run


def trimmed(text: str) -> str:
    """Removes what the reader does not use: tables of source lines, parts of configurations."""

    def shortened(line: str) -> str:
        line = UNREAD.sub("", line)
        if not (found := CONFIG.search(line)):
            return line
        config = json.loads(found[2])
        kept = {name: config[name] for name in READ if name in config}
        if "estimated_cycles" in config.get("window_config", {}):
            kept["window_config"] = {
                "estimated_cycles": config["window_config"]["estimated_cycles"]
            }
        config = json.dumps(kept, separators=(",", ":"))
        return line[: found.start()] + (f", {found[1]}{config}" if kept else "")

    head, _, rest = text.partition("\n")
    rest = re.sub(
        r"^\d+ .*\n|^(FileNames|FunctionNames|FileLocations|StackFrames)\n+", "", rest, flags=re.M
    )
    return "\n".join([head, *map(shortened, rest.strip().splitlines())]) + "\n"


def main(platform: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    if platform == "cpu":
        jax.config.update("jax_num_cpu_devices", 8)
        devices = jax.devices("cpu")
    else:
        devices = devices_of(TOPOLOGIES[platform])
    mesh = Mesh(np.array(devices).reshape(4, 2), ("a", "b"))
    matrix = jax.ShapeDtypeStruct((256, 256), "float32", sharding=NamedSharding(mesh, P("a", None)))
    count = jax.ShapeDtypeStruct((), "int32", sharding=NamedSharding(mesh, P()))
    options = {"xla_gpu_autotune_level": 0} if platform == "cuda" else None
    compiled = jax.jit(program(mesh)).lower(matrix, matrix, count).compile(options)
    path = Path(__file__).resolve().parent / "hlo" / f"{platform}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(trimmed(compiled.as_text()))


if __name__ == "__main__":
    main(sys.argv[1])
