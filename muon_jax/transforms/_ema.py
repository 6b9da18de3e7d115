"""The moving average of the transformations: computed wide, finite wherever its input is."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from muon_jax._checks import listed, refused
from muon_jax._types import wide_dtype
from muon_jax.trees._paths import named_leaves


def averaged(old: Float[Array, "..."], new: Float[Array, "..."], decay: Any) -> Float[Array, "..."]:
    """Returns decay·old + (1 − decay)·new, in float32 or wider, up to one unit of rounding.

    Rounding could carry an average of two numbers at the end of a format on to infinity. So the
    weights of a true average sum to a unit less than one, which costs no operation on arrays. None
    is negative: a decay that is one, up to rounding, keeps the average.
    """
    wide = wide_dtype(old.dtype, new.dtype)
    weight = jnp.maximum(1 - decay - (decay > 0) * float(jnp.finfo(wide).eps), 0)
    return (decay * old.astype(wide) + weight * new.astype(wide)).astype(wide)


def stored(average: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Rounds to a dtype: what is finite and beyond its range, to its largest number."""
    largest = jnp.finfo(dtype).max.astype(average.dtype)
    if largest == jnp.finfo(average.dtype).max:
        return average.astype(dtype)
    within = jnp.clip(average, -largest, largest)
    return jnp.where(jnp.isfinite(average), within, average).astype(dtype)


def check_storable(call: str, params: Any) -> None:
    """Raises TypeError for parameters of 8 bits, in which small updates round to nothing."""
    dtypes = ((path, jnp.result_type(leaf)) for path, leaf in named_leaves(params))
    if narrow := [f"{path} ({dtype})" for path, dtype in dtypes if dtype.itemsize < 2]:
        raise refused(
            call,
            f"parameters of 8 bits cannot be trained: {listed(narrow)}",
            "Train a copy in bfloat16 or float32, and round it to 8 bits for the forward pass",
            TypeError,
        )
