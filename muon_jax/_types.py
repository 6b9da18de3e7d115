"""Aliases that every floor shares."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optax
from jaxtyping import Array, Float

Matrices: TypeAlias = Float[Array, "batch rows cols"]
"""A batch of matrices: the one form in which the polar maths sees a parameter."""

Solve: TypeAlias = Callable[[Sequence[Matrices]], list[Matrices]]
"""Orthogonalises batches of whole matrices of any shapes, each in its place."""

Orthogonalizer: TypeAlias = Callable[[Matrices], Matrices]
"""Maps every matrix of a batch to its (near-)orthogonal polar factor, in the same shape."""

ShapeScale: TypeAlias = Callable[[int, int], float]
"""Maps (rows, cols) = (inputs, outputs) of a matrix to the factor on its orthogonal update."""

Mask: TypeAlias = Any | Callable[[optax.Params], Any]
"""A prefix tree of booleans, or a function from the parameters to one."""

ScalarOrSchedule: TypeAlias = optax.ScalarOrSchedule
