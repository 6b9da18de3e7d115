"""Float32 in place of float16, for transformations that square what they get."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_jax._moving_average import stored


def in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on float32 copies of float16 leaves; its state for them is float32.

    AdamW's eps of 1e-8 is zero in float16 and squares leave its range at both ends: a gradient of
    zero gives NaN there, and one of 1e-4 an infinite update.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.OptState:
        return tx.init(_wide(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        taken, state = tx.update(_wide(updates), state, _wide(params), **extra_args)
        return jax.tree.map(_as_before, taken, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float16 else leaf, tree
    )


def _as_before(new: jax.Array, old: jax.Array) -> jax.Array:
    return stored(new, old.dtype) if old.dtype == jnp.float16 else new
