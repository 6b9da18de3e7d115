"""Skips steps whose gradients are not finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from muon_jax import _checks
from muon_jax.mesh._state import on_mesh_of


class SkipNonfiniteState(NamedTuple):
    """The state of `skip_nonfinite`.

    Attributes:
      skipped: number of steps skipped so far; it saturates at the largest int32.
      inner_state: state of the wrapped transformation.
    """

    skipped: Int[Array, ""]
    inner_state: optax.OptState


@_checks.named("skip_nonfinite")
def skip_nonfinite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skips every step whose gradients contain a NaN or an infinity.

    A skipped step has an update of zero and leaves the state of `tx` bitwise unchanged: momenta,
    counts and schedules. Wrap the whole chain, so that clipping and decay are skipped as well, and
    `optax.MultiSteps(...).gradient_transformation()` too, because a non-finite micro-batch would
    stay in its accumulator. The number of consecutive skips is not limited: watch `skipped`.

    `tx` runs at every step, with zeros for non-finite gradients, and its results are selected
    afterwards. A branch, as in `optax.apply_if_finite`, would contain the collectives of a mesh,
    and start only when all gradients have been checked. Nothing is sent to the host. Inside
    `shard_map` each device checks its own gradients: pass gradients that are equal on all devices,
    or wrap the `shard_map` instead.

    Args:
      tx: any transformation or chain.

    Returns:
      A transformation with the updates of `tx`, or zeros.

    Raises:
      TypeError: if `tx` is not a gradient transformation.

    Examples:
      >>> import muon_jax, optax
      >>> tx = muon_jax.skip_nonfinite(optax.adamw(1e-3))
      >>> params = {"bias": jnp.ones(3)}
      >>> updates, state = tx.update({"bias": jnp.full(3, jnp.inf)}, tx.init(params), params)
      >>> updates["bias"].tolist(), int(state.skipped)
      ([0.0, 0.0, 0.0], 1)
    """
    _checks.check_transformation("tx", tx)
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> SkipNonfiniteState:
        return on_mesh_of(params, SkipNonfiniteState(jnp.zeros([], jnp.int32), tx.init(params)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        finite = _all_finite(updates)
        zeroed = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), updates)
        steps, inner = tx.update(zeroed, state.inner_state, params, **extra_args)
        steps = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), steps)
        inner = jax.tree.map(lambda new, old: jnp.where(finite, new, old), inner, state.inner_state)
        counted = jnp.where(finite, state.skipped, optax.safe_increment(state.skipped))
        return steps, SkipNonfiniteState(counted, inner)

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _all_finite(tree: Any) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.array(leaves, bool))
