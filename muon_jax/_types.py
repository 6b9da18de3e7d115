"""Type aliases and number formats that every package shares."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Matrices: TypeAlias = Float[Array, "batch rows cols"]
"""A batch of matrices: the form in which orthogonalizers get every parameter."""

Batch: TypeAlias = Float[Array, "_batch _rows _cols"]
"""A batch of matrices in a list of batches whose shapes differ."""

Solve: TypeAlias = Callable[[Sequence[Batch]], list[Batch]]
"""Orthogonalises batches of whole matrices of any shapes; the results are in the same order."""

Orthogonalizer: TypeAlias = Callable[[Matrices], Matrices]
"""Maps every matrix of a batch to its (near-)orthogonal polar factor, in the same shape."""

ShapeScale: TypeAlias = Callable[[int, int], float]
"""Maps (rows, cols) = (inputs, outputs) of a matrix to the factor on its orthogonal update."""

Scale: TypeAlias = (
    Literal["outputs", "match_rms", "keller", "spectral", "update_norm", "none"] | ShapeScale
)
"""The size of orthogonal updates: see `scale_by_muon`."""

Mask: TypeAlias = Any | Callable[[optax.Params], Any]
"""A prefix tree of booleans, or a function from the parameters to one."""

ScalarOrSchedule: TypeAlias = optax.ScalarOrSchedule


def common_dtype(*dtypes: DTypeLike) -> np.dtype:
    """Returns the narrowest dtype that holds all of these, whatever JAX's promotion mode."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def wide_dtype(*dtypes: DTypeLike) -> np.dtype:
    """Returns the narrowest dtype of at least float32 that holds all of these."""
    return common_dtype(*dtypes, jnp.float32)
