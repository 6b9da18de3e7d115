"""Measures all that needs eight devices, in one process, and prints it as JSON.

`test_mesh.py` starts this file and asserts case by case. Eight CPU devices stand for a cluster:
what is counted here (collectives, bytes, operations) does not depend on speed.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax

from tests import mesh_diagnostics, mesh_layouts, mesh_refusals, mesh_states, mesh_surroundings
from tests.mesh_setup import CASES

MODULES = (mesh_diagnostics, mesh_layouts, mesh_refusals, mesh_states, mesh_surroundings)
"""Importing them registers their cases."""


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as problem:
        return {"raised": type(problem).__name__, "message": str(problem)}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    chosen = [name for name in CASES if all(word in name for word in sys.argv[1:])]
    print(json.dumps({name: outcome(CASES[name]) for name in chosen}, indent=1))
