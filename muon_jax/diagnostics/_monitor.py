"""Wraps a transformation so that its state also says, now and then, what the step looked like."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from muon_jax import _checks
from muon_jax.diagnostics._measure import Measurement, measure
from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._orthogonalize import AxesLike

_CALL = "diagnostics.monitor"
_NEVER = -1


class MonitorState(NamedTuple):
    """What `monitor` keeps: the state of what it wraps, and its last look at a step.

    Attributes:
      count: number of updates so far.
      inner_state: state of the wrapped transformation.
      measured_at: the value of `count` when the measurements were taken; −1 before the first.
      measurements: a `Measurement` for each parameter that has a view, by its path; zeros before
        the first.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: Any
    measured_at: Int[Array, ""]
    measurements: dict[str, Measurement]


def monitor(
    tx: optax.GradientTransformation, *, every: int = 100, axes: AxesLike = None
) -> optax.GradientTransformationExtraArgs:
    """Measures, at the first step and then at every so many, what a transformation does.

    Updates pass bit for bit. The measurements stand behind a `jax.lax.cond`, so between two of
    them a step costs one comparison; where `vmap` runs many models at once, it takes them at every
    step. Inside `shard_map` it sees what a device holds. Read the last ones by
    `optax.tree_utils.tree_get(state, "measurements")`.

    What is measured of the updates is what `tx` returns: around a whole optimizer they include the
    decay of the weights, around `scale_by_muon` alone they are the scaled polar factors.

    Args:
      tx: any transformation.
      every: how many steps from one measurement to the next.
      axes: how leaves are matrices, as for `scale_by_muon`; None applies the default rules. Other
        leaves are not measured.

    Returns:
      A transformation with the updates of `tx`, and `MonitorState` around its state.

    Raises:
      TypeError or ValueError: at once for an unusable argument; at `init` as `matrix_axes` does; at
        `update` without parameters.

    Examples:
      >>> params = {"dense": {"kernel": jnp.eye(4), "bias": jnp.ones(4)}}
      >>> tx = monitor(optax.sgd(0.01), every=100)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> float(optax.tree_utils.tree_get(state, "measurements")["dense/kernel"].stable_rank[0])
      4.0
    """
    _checks.check_positive_int(_CALL, "every", every)
    _checks.check_transformation(_CALL, "tx", tx)
    inner = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> MonitorState:
        shapes = jax.eval_shape(lambda tree: measure(tree, tree, axes=axes), params)
        nothing = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        start, never = jnp.zeros([], jnp.int32), jnp.full([], _NEVER, jnp.int32)
        return on_mesh_of(params, MonitorState(start, inner.init(params), never, nothing))

    def update(
        updates: optax.Updates,
        state: MonitorState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MonitorState]:
        if params is None:
            raise _checks.refused(
                f"{_CALL}(...).update",
                "params is missing",
                "Pass params, of which steps are measured",
            )
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)

        def look() -> tuple[Array, dict[str, Measurement]]:
            found = measure(updates, params, axes=axes)
            return state.count, optax.tree.cast_like(found, state.measurements)

        measured_at, measurements = jax.lax.cond(
            state.count % every == 0,
            look,
            lambda: (state.measured_at, state.measurements),
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, MonitorState(count, inner_state, measured_at, measurements)

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
