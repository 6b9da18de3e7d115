"""AdamW in any dtype: float32 arithmetic for float16, bounded gradients, fixed state dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_jax.transforms._ema import cast_saturating

# Nesterov's bias correction divides a gradient by 1 - b1 = 0.1. If that overflowed, dividing by an
# infinite second moment would give NaN; the update should be zero.
_ROOM = 16


def in_range(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs AdamW with float32 for float16 leaves, and with bounded finite gradients.

    In float16 AdamW's eps of 1e-8 is zero, and squares overflow or underflow: a gradient of zero
    gives NaN, and one of 1e-4 an infinite update. So float16 leaves are cast to float32, and finite
    entries are clipped below the largest number. The state keeps its dtypes, even if gradients are
    wider than parameters.
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
        bounded = jax.tree.map(_bounded, _wide(updates))
        steps, moved = tx.update(bounded, state, _wide(params), **extra_args)
        return jax.tree.map(_as_before, steps, updates), jax.tree.map(_as_stored, moved, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float16 else leaf, tree
    )


def _bounded(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):  # complex numbers have no order
        return leaf
    limit = float(jnp.finfo(leaf.dtype).max) / _ROOM
    return jnp.where(jnp.isfinite(leaf), jnp.clip(leaf, -limit, limit), leaf)


def _as_before(new: jax.Array, old: jax.Array) -> jax.Array:
    return cast_saturating(new, old.dtype) if old.dtype == jnp.float16 else new


def _as_stored(new: jax.Array, old: jax.Array) -> jax.Array:
    return new if new.dtype == old.dtype else cast_saturating(new, old.dtype)
