"""The run of `reference_runs` in JAX, with its weights in a tree like Flax's."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference_runs as run

# Flax puts inputs before outputs, and the spatial axes of a filter first.
ORDERS = dict.fromkeys(run.MATRICES, (1, 0)) | {
    "filters": (2, 3, 1, 0),
    "stack": (0, 2, 1),
    "vector": (0,),
}
PATHS = {name: (name, "kernel") for name in run.MATRICES} | {
    "filters": ("conv", "kernel"),
    "stack": ("experts", "kernel"),
    "vector": ("norm", "scale"),
}


def to_jax(weights: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    return {
        PATHS[name][0]: {PATHS[name][1]: jnp.asarray(np.transpose(weight, ORDERS[name]))}
        for name, weight in weights.items()
    }


def from_jax(params: Any) -> dict[str, np.ndarray]:
    return {
        name: np.transpose(params[layer][leaf], np.argsort(ORDERS[name]))
        for name, (layer, leaf) in PATHS.items()
        if layer in params
    }


def trained(
    tx: optax.GradientTransformation,
    params: Any,
    state: Any = None,
    steps: range = range(run.STEPS),
) -> tuple[Any, Any]:
    """Trains a tree of `to_jax`, from the start or from a state."""
    names = [name for name, (layer, _) in PATHS.items() if layer in params]
    state = tx.init(params) if state is None else state
    step = _compiled(tx)
    for index in steps:
        gradients = run.gradients(index)
        gradients = to_jax({name: gradients[name] for name in names})
        params, state = step(params, state, gradients)
    return params, state


@functools.cache
def _compiled(tx: optax.GradientTransformation) -> Any:
    """Returns one compiled step for each optimizer, for all runs."""

    @jax.jit
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step
