"""Stacks of equal leaves: reshaped to batches of matrices and back, and their communication."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from muon_jax.mesh._slots import Cost
from muon_jax.views._matrix_axes import MatrixAxes

WireDtype: TypeAlias = Callable[[int, int], str | None]
"""Maps (rows, cols) to a narrower dtype for communication, or to None."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What the leaves of one stack have in common.

    Attributes:
      shape: of one leaf.
      dtype: the name of its dtype.
      view: how it is a batch of matrices.
    """

    shape: tuple[int, ...]
    dtype: str
    view: MatrixAxes

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """The axes that are neither inputs nor outputs."""
        return self.view.batch_axes(len(self.shape))

    @property
    def batch(self) -> int:
        """The number of entries of the batch axes."""
        return math.prod(self.shape[axis] for axis in self.batch_axes)

    def cost(self, cost: Cost) -> float:
        """Returns the work of one entry of the batch."""
        one = tuple(1 if i in self.batch_axes else n for i, n in enumerate(self.shape))
        return sum(batch * cost(rows, cols) for batch, rows, cols in self.view.matrix_shapes(one))

    def dtype_for(self, wire_dtype: WireDtype) -> str:
        """Returns the dtype for communication of the leaf: its own, or a narrower one."""
        wanted = {wire_dtype(rows, cols) for _, rows, cols in self.view.matrix_shapes(self.shape)}
        narrow = wanted.pop() if len(wanted) == 1 else None
        saves = narrow and jnp.dtype(narrow).itemsize < jnp.dtype(self.dtype).itemsize
        return narrow if narrow and saves else self.dtype


def as_batches(stack: Array, batch_axes: Sequence[int]) -> Array:
    """Merges the batch axes and the first axis of (members, *leaf) into one.

    The members are its minor part, which preserves the sharding of a batch axis.

    Returns:
      An array (matrices, *leaf), whose batch axes have one entry.
    """
    batch = [axis + 1 for axis in batch_axes]
    rest = [axis for axis in range(1, stack.ndim) if axis not in batch]
    one = [1 if axis in batch else stack.shape[axis] for axis in range(1, stack.ndim)]
    count = math.prod(stack.shape[axis] for axis in (0, *batch))
    return stack.transpose([*batch, 0, *rest]).reshape(count, *one)


def as_leaves(batches: Array, shape: Sequence[int], batch_axes: Sequence[int]) -> Array:
    """Reshapes batches to a stack of leaves of this shape; the inverse of `as_batches`."""
    order = [*(axis + 1 for axis in batch_axes), 0]
    order += [axis for axis in range(1, len(shape)) if axis not in order]
    stack = batches.reshape([shape[axis] for axis in order])
    return stack.transpose([order.index(axis) for axis in range(len(shape))])
