"""The moving averages of the transformations: in float32 or wider, and finite for finite input."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from muon_jax._checks import listed, refused
from muon_jax._types import wide_dtype
from muon_jax.polar._normalize import nonzero
from muon_jax.trees._paths import named_leaves


def ema(
    old: Inexact[Array, "..."], new: Inexact[Array, "..."], decay: Any
) -> Inexact[Array, "..."]:
    """Returns decay·old + (1 − decay)·new, in float32 or wider, up to one unit of rounding.

    The average of two numbers near the largest of a format could round to infinity, so for
    decay > 0 the weights sum to one minus a unit of rounding. No weight is negative: a decay of one
    keeps the average.
    """
    wide = wide_dtype(old.dtype, new.dtype)
    weight = jnp.maximum(1 - decay - (decay > 0) * float(jnp.finfo(wide).eps), 0)
    return (decay * old.astype(wide) + weight * new.astype(wide)).astype(wide)


def cast_saturating(average: Inexact[Array, "..."], dtype: Any) -> Inexact[Array, "..."]:
    """Casts to a dtype; finite values beyond its range become its largest number."""
    largest = jnp.finfo(dtype).max.astype(average.dtype)
    if largest == jnp.finfo(average.dtype).max:
        return average.astype(dtype)
    within = jnp.clip(average, -largest, largest)
    return jnp.where(jnp.isfinite(average), within, average).astype(dtype)


def check_storable(params: Any) -> None:
    """Raises TypeError for parameters of 8 bits, because small updates round to zero there."""
    dtypes = ((path, jnp.result_type(leaf)) for path, leaf in named_leaves(params))
    if narrow := [f"{path} ({dtype})" for path, dtype in dtypes if dtype.itemsize < 2]:
        raise refused(
            f"parameters of 8 bits cannot be trained: {listed(narrow)}",
            "Train a copy in bfloat16 or float32, and round it to 8 bits for the forward pass",
            TypeError,
        )


def mean_size(entries: Array, axes: int | tuple[int, ...]) -> Array:
    """Returns root mean squares along axes, which stay with size one, without overflow."""
    largest = nonzero(jnp.max(jnp.abs(entries), axis=axes, keepdims=True))
    return largest * jnp.sqrt(jnp.mean(jnp.square(entries / largest), axis=axes, keepdims=True))


def root_mean_square(old: Array, new: Array, decay: float) -> Array:
    """Returns √(decay·old² + (1 − decay)·new²) without overflow of the squares."""
    return jnp.hypot(math.sqrt(decay) * old, math.sqrt(1 - decay) * new.astype(old.dtype))
