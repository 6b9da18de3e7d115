"""Batches matrices by shape.

A transformer has hundreds of weight matrices but few shapes. On CPUs the matrices of one shape are
stacked, and one loop replaces them in place, a chunk at a time: the program grows with the number
of shapes, and needs one stack and one chunk of extra memory. On accelerators stacking copies every
matrix twice, which takes longer than batched products save, so each array is processed separately.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from muon_jax import _checks
from muon_jax._types import Batch, Matrices, Orthogonalizer

# One matrix at a time: it uses all cores of a CPU, and its iterates stay in the cache. `python
# benchmarks/batching.py` compares chunk sizes on this machine.
_CPU_CHUNK_BYTES = 1

# One matrix of 512 × 512, and one at a time of all larger ones. The TPU compiler estimates for 24
# matrices of 1024 × 1024 a cost of 0.92 of that with chunks of 16 MiB and 0.47 of that with one
# stack; for 24 of 512 × 512, 1.08 of that with chunks of 4 MiB, which compile five times as long.
_ACCELERATOR_CHUNK_BYTES = 2**20

_OneShape = Float[Array, "_batch rows cols"]


def orthogonalize_all(
    matrices: Sequence[Batch], orthogonalizer: Orthogonalizer, chunk_bytes: int | None = None
) -> list[Batch]:
    """Orthogonalises batches of matrices of any shapes.

    Args:
      matrices: arrays of shape (batch, rows, cols).
      orthogonalizer: called with batches of wide matrices (rows ≤ cols); tall ones are transposed,
        because the polar factor commutes with transposition.
      chunk_bytes: the largest float32 size of the stack in one call of the orthogonalizer, whose
        working memory is a few times this; a chunk has at least one matrix. None is one matrix on
        CPUs and 1 MiB elsewhere.

    Returns:
      The results in the order, shapes and dtypes of `matrices`.
    """
    results = _compiled(tuple(matrices), orthogonalizer, chunk_bytes)
    return list(results)


# Jitted, so that an update outside of jit compiles once.
@functools.partial(jax.jit, static_argnames=("orthogonalizer", "chunk_bytes"))
def _compiled(
    matrices: tuple[Batch, ...], orthogonalizer: Orthogonalizer, chunk_bytes: int | None
) -> tuple[Batch, ...]:
    def by_shape(*matrices: Batch) -> tuple[Batch, ...]:
        return _by_shape(matrices, orthogonalizer, chunk_bytes or _CPU_CHUNK_BYTES)

    def one_by_one(*matrices: Batch) -> tuple[Batch, ...]:
        chunk = chunk_bytes or _ACCELERATOR_CHUNK_BYTES
        return tuple(_by_itself(each, orthogonalizer, chunk) for each in matrices)

    return lax.platform_dependent(*matrices, cpu=by_shape, default=one_by_one)


# Jitted, so that arrays of one shape are traced once; programs for CPUs trace this as well.
@functools.partial(jax.jit, static_argnames=("orthogonalizer", "chunk_bytes"))
def _by_itself(batch: Matrices, orthogonalizer: Orthogonalizer, chunk_bytes: int) -> Matrices:
    transposed = _is_tall(batch) and not getattr(orthogonalizer, "takes_tall", False)
    stack = batch.mT if transposed else batch
    if stack.size:
        stack = _in_chunks(stack, orthogonalizer, chunk_bytes)
    return stack.mT if transposed else stack


def _by_shape(
    matrices: Sequence[Batch], orthogonalizer: Orthogonalizer, chunk_bytes: int
) -> tuple[Batch, ...]:
    buckets: dict[tuple[int, int, jnp.dtype], list[int]] = {}
    for index, batch in enumerate(matrices):
        short, long = sorted(batch.shape[1:])
        buckets.setdefault((short, long, batch.dtype), []).append(index)
    results = dict[int, Batch]()
    for members in buckets.values():
        batches = [matrices[index] for index in members]
        stack = jnp.concatenate([each.mT if _is_tall(each) else each for each in batches])
        if stack.size:
            stack = _in_chunks(stack, orthogonalizer, chunk_bytes)
        for index, part in zip(members, _unstacked(stack, batches), strict=True):
            results[index] = part.mT if _is_tall(matrices[index]) else part
    return tuple(results[index] for index in range(len(matrices)))


def _in_chunks(stack: Matrices, orthogonalizer: Orthogonalizer, chunk_bytes: int) -> Matrices:
    """Replaces the stack by its result in place, chunk by chunk."""
    chunk = _chunk_size(len(stack), 4 * stack[0].size, chunk_bytes)
    whole, rest = divmod(len(stack), chunk)
    if whole <= 1 and not rest:
        return _result(orthogonalizer, stack)

    def replace(index: int | Array, stack: Matrices, size: int) -> Matrices:
        part = lax.dynamic_slice_in_dim(stack, index, size)
        return lax.dynamic_update_slice_in_dim(stack, _result(orthogonalizer, part), index, 0)

    stack = lax.fori_loop(0, whole, lambda i, stack: replace(i * chunk, stack, chunk), stack)
    return replace(whole * chunk, stack, rest) if rest else stack


def _result(orthogonalizer: Orthogonalizer, part: Matrices) -> Matrices:
    """Calls the orthogonalizer; raises if the shape changes, which updates in place would hide."""
    result = orthogonalizer(part)
    if result.shape != part.shape:
        remedy = f"it returns {result.shape} for {part.shape}: return the same shape"
        raise _checks.invalid("orthogonalizer", orthogonalizer, remedy)
    return result.astype(part.dtype)


def _chunk_size(count: int, matrix_bytes: int, chunk_bytes: int) -> int:
    """Returns the number of matrices in a chunk, so that all chunks have about one size."""
    most = max(1, chunk_bytes // matrix_bytes)
    chunks = math.ceil(count / most)
    return math.ceil(count / chunks)


def _unstacked(stack: Matrices, batches: Sequence[Batch]) -> list[_OneShape]:
    """Splits a stack into its batches."""
    ends = list(itertools.accumulate(map(len, batches)))
    starts = [end - len(batch) for end, batch in zip(ends, batches, strict=True)]
    if len(batches) == 1 or not stack.size:
        return [lax.slice_in_dim(stack, *span) for span in zip(starts, ends, strict=True)]
    starts = _as_runtime_values(starts, stack)
    return [
        lax.dynamic_slice_in_dim(stack, start, len(batch))
        for start, batch in zip(starts, batches, strict=True)
    ]


def _as_runtime_values(numbers: Sequence[int], stack: Matrices) -> list[Int[Array, ""]]:
    """Returns the numbers as values that XLA cannot fold to constants.

    XLA:CPU compiles every slice with a constant start to its own kernel, in 20 ms each, most of the
    compile time of a step. Slices with dynamic starts share one kernel. Both branches below return
    the same numbers, so the predicate does not matter.
    """

    def constants() -> list[Int[Array, ""]]:
        return [jnp.int32(number) for number in numbers]

    return lax.cond(jnp.isnan(stack[0, 0, 0]), constants, constants)


def _is_tall(batch: Matrices) -> bool:
    return batch.shape[1] > batch.shape[2]
