"""The moving average of the transformations: computed wide, finite wherever its input is."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def averaged(old: Float[Array, "..."], new: Float[Array, "..."], decay: Any) -> Float[Array, "..."]:
    """Returns decay·old + (1 − decay)·new, in float32 or wider.

    An average lies between what it averages. Rounding may carry it past the largest float there is,
    to infinity, so it is held to its bounds; an infinite or NaN gradient shows all the same.
    """
    wide = jnp.promote_types(jnp.promote_types(old.dtype, new.dtype), jnp.float32)
    old, new = old.astype(wide), new.astype(wide)
    average = decay * old + (1 - decay) * new
    return jnp.clip(average, jnp.minimum(old, new), jnp.maximum(old, new)).astype(wide)


def stored(average: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Rounds to a dtype: what is finite and beyond its range, to its largest number."""
    largest = jnp.finfo(dtype).max.astype(average.dtype)
    if largest == jnp.finfo(average.dtype).max:
        return average.astype(dtype)
    within = jnp.clip(average, -largest, largest)
    return jnp.where(jnp.isfinite(average), within, average).astype(dtype)
