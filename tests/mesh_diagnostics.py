"""Cases: what `muon_jax.diagnostics.monitor` measures and sends on a mesh."""

from typing import Any

import jax
import numpy as np
import optax

from muon_jax.diagnostics import collectives, measure, monitor
from tests.mesh_setup import LAST_TWO, case, gpt


@case("Auto", "Explicit")
def monitored(kind: str) -> dict[str, Any]:
    leaves, host = gpt("2d", kind, 1, 16)
    tx = monitor(optax.sgd(0.1), every=2, axes=LAST_TWO)
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(leaves)
    params, state = step(leaves, state)
    first = state.measurements
    sent = collectives(step.lower(params, state).compile())
    step(params, state)
    alone = measure(jax.tree.map(lambda leaf: -0.1 * leaf, host), host, axes=LAST_TWO)
    same = jax.tree.map(lambda a, b: bool(np.allclose(a, b, rtol=1e-3)), first, alone)
    return {
        "same": all(jax.tree.leaves(same)),
        "traces": len(traces),
        "outside a branch": sum(not each.in_branch for each in sent.operations),
        "in branches": sum(each.in_branch for each in sent.operations),
    }
