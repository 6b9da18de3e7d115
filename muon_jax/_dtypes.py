"""The formats in which the library computes, beside those in which users keep their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def common_dtype(*dtypes: DTypeLike) -> np.dtype:
    """The narrowest format that holds all of these, also where JAX may not promote by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def wide_dtype(*dtypes: DTypeLike) -> np.dtype:
    """The narrowest format of at least float32 that holds all of these."""
    return common_dtype(*dtypes, jnp.float32)
