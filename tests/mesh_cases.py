"""Runs all cases that need eight devices in one process, and prints the results as JSON.

The arguments select the cases whose names contain all given words; `--fast` skips slow cases.
`test_mesh.py` starts this file and asserts case by case. Eight CPU devices can replace a cluster,
because the counts of collectives, bytes and operations do not depend on speed.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax

from tests import mesh_diagnostics, mesh_layouts, mesh_refusals, mesh_states, mesh_surroundings
from tests.covering import covering
from tests.mesh_setup import CASES

BFLOAT16_SOMEWHERE = ("float32 bfloat16", "bfloat16 None", "bfloat16 bfloat16")
MODULES = (mesh_diagnostics, mesh_layouts, mesh_refusals, mesh_states, mesh_surroundings)
"""Importing them registers their cases."""

SLOW = frozenset(
    [
        *(f"whole_step {layout} Auto scanned" for layout in ("tensor", "2d", "hsdp")),
        *(f"whole_step {layout} Explicit scanned" for layout in ("replicated", "2d", "hsdp")),
        "whole_step replicated Auto apart",
        *(f"narrow_wire {where}" for where in ("fsdp Auto", "hsdp Auto", "fsdp Explicit")),
        *(f"layers {count}" for count in (2, 8, 12)),
        *(f"around {what}" for what in ("TrainState", "MultiSteps", "given specs")),
        *(
            f"manual_with {which}"
            for which in ("in bfloat16", "polar_by_svd", "inverse_sqrt", "polar_to")
        ),
        *(f"derivative Auto {numbers}" for numbers in BFLOAT16_SOMEWHERE),
        *(
            f"derivative Explicit {numbers}"
            for numbers in ("float32 None", *BFLOAT16_SOMEWHERE[:2])
        ),
        "manual replicated True",
        "manual hsdp True",
        "left_to_the_compiler Explicit",
        "left_to_the_compiler Auto Explicit",
        "monitored Auto",
        "skipped Auto",
        "quantized Explicit int8",
        "quantized Explicit bfloat16",
        *(f"preconditioned Explicit {name}" for name in mesh_states.PRECONDITIONERS),
        "preconditioned Auto soap",
        "soap_at_owners Explicit",
        "second_step Explicit",
        "gradients_that_lie_otherwise Auto",
        "beside_leaves_on_no_mesh last",
        "vmapped Auto",
        "turned Auto",
    ]
)
"""Cases that `make test` leaves to `make test-all`; a case like each of them stays."""


def choices(name: str, arguments: Iterable[Any]) -> list[Any]:
    """Returns the arguments of a case as pytest parameters, marked slow if the case is slow."""
    tuples = [each if isinstance(each, tuple) else (each,) for each in arguments]
    fast = [each for each in tuples if " ".join(map(str, (name, *each))).lstrip() not in SLOW]
    return covering(tuples, fast=fast)


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as problem:
        return {"raised": type(problem).__name__, "message": str(problem)}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    words = [word for word in sys.argv[1:] if word != "--fast"]
    left_out = SLOW if "--fast" in sys.argv else ()
    chosen = [
        name for name in CASES if all(word in name for word in words) and name not in left_out
    ]
    print(json.dumps({name: outcome(CASES[name]) for name in chosen}, indent=1))
