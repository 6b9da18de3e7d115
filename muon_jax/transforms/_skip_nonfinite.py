"""Leaves everything as it is on a step whose gradients overflowed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from muon_jax import _checks
from muon_jax.mesh._state import on_mesh_of

_CALL = "skip_nonfinite"


class SkipNonfiniteState(NamedTuple):
    """What `skip_nonfinite` carries from step to step.

    Attributes:
      skipped: number of steps skipped so far; it stays at the largest int32 once there.
      inner_state: state of the wrapped transformation.
    """

    skipped: Int[Array, ""]
    inner_state: optax.OptState


def skip_nonfinite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skips every step whose gradients hold a NaN or an infinity.

    Such a step has an update of zero and leaves the state of `tx` as it was to the last bit: its
    momenta, its counts and with them its schedules. Wrap the whole chain, so that clipping and
    decay pause as well, and `optax.MultiSteps(...).gradient_transformation()` too: inside that, a
    broken micro-batch would stay in the accumulator for good. There is no limit on skips in a row:
    watch `skipped`.

    `tx` runs on every step, on gradients with zeros for what is not finite, and the outcome is
    selected afterwards. A branch, as in `optax.apply_if_finite`, would hold the collectives of a
    mesh inside it and wait for the verdict before it starts. Nothing is sent to the host. Inside
    `shard_map` a device judges what it sees: hand it gradients that are the same on all, or wrap
    the `shard_map` instead.

    Args:
      tx: any transformation or chain.

    Returns:
      A transformation with the updates of `tx`, or zeros.

    Raises:
      TypeError: if `tx` is no gradient transformation.

    Examples:
      >>> import muon_jax, optax
      >>> tx = muon_jax.skip_nonfinite(optax.adamw(1e-3))
      >>> params = {"bias": jnp.ones(3)}
      >>> updates, state = tx.update({"bias": jnp.full(3, jnp.inf)}, tx.init(params), params)
      >>> updates["bias"].tolist(), int(state.skipped)
      ([0.0, 0.0, 0.0], 1)
    """
    _checks.check_transformation(_CALL, "tx", tx)
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> SkipNonfiniteState:
        return on_mesh_of(params, SkipNonfiniteState(jnp.zeros([], jnp.int32), tx.init(params)))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        finite = _all_finite(updates)
        harmless = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), updates)
        taken, inner = tx.update(harmless, state.inner_state, params, **extra_args)
        taken = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), taken)
        inner = jax.tree.map(lambda new, old: jnp.where(finite, new, old), inner, state.inner_state)
        counted = jnp.where(finite, state.skipped, optax.safe_increment(state.skipped))
        return taken, SkipNonfiniteState(counted, inner)

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _all_finite(tree: Any) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(leaves, bool))
