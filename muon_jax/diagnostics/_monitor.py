"""Wraps a transformation to measure its updates every few steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from muon_jax import _checks
from muon_jax.diagnostics._measure import Measurement, measure
from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._orthogonalize import AxesLike

_NEVER = -1


class MonitorState(NamedTuple):
    """The state of `monitor`: that of the wrapped transformation, and the last measurements.

    Attributes:
      count: number of updates so far.
      inner_state: state of the wrapped transformation.
      measured_at: the value of `count` at the last measurements; −1 before the first.
      measurements: a `Measurement` for each parameter that has a view, by path; zeros before the
        first.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: Any
    measured_at: Int[Array, ""]
    measurements: dict[str, Measurement]


@_checks.named("diagnostics.monitor")
def monitor(
    tx: optax.GradientTransformation, *, every: int = 100, axes: AxesLike = None
) -> optax.GradientTransformationExtraArgs:
    """Measures the updates of a transformation, at the first step and then every few steps.

    Updates pass unchanged. A `jax.lax.cond` skips the measurements at other steps, which then cost
    one comparison; under `vmap` it measures at every step. Inside `shard_map` it measures the shard
    of a device. Read the last measurements by
    `optax.tree_utils.tree_get(state, "measurements")`.

    The measured updates are those of `tx`: with weight decay for a whole optimizer, scaled polar
    factors for `scale_by_muon`.

    Args:
      tx: any transformation.
      every: number of steps between two measurements.
      axes: views of leaves as matrices, as for `scale_by_muon`; None applies the default rules.
        Other leaves are not measured.

    Returns:
      A transformation with the updates of `tx` and a `MonitorState`.

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
    _checks.check_positive_int("every", every)
    _checks.check_transformation("tx", tx)
    inner = optax.with_extra_args_support(tx)

    @_checks.named("diagnostics.monitor")
    def measured(updates: Any, params: Any) -> dict[str, Measurement]:
        return measure(updates, params, axes=axes)

    def init(params: optax.Params) -> MonitorState:
        shapes = jax.eval_shape(lambda tree: measured(tree, tree), params)
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
            with _checks.named("diagnostics.monitor"):
                remedy = "Pass params, because updates are measured relative to them"
                raise _checks.refused("params is missing", remedy)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)

        def now() -> tuple[Array, dict[str, Measurement]]:
            found = measured(updates, params)
            return state.count, optax.tree.cast_like(found, state.measurements)

        measured_at, measurements = jax.lax.cond(
            state.count % every == 0, now, lambda: (state.measured_at, state.measurements)
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, MonitorState(count, inner_state, measured_at, measurements)

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
