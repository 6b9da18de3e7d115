"""Matrices of one shape share one computation.

A transformer has hundreds of weight matrices but a handful of shapes. On CPUs the matrices of a
shape are stacked and worked off in place, a chunk at a time, by one loop: the program grows with
the number of shapes, and the memory it needs beside its input and output is one stack and one
chunk. On accelerators a stack would cost a copy of every matrix each way, which takes longer than
the products gain by it: there each array is worked off by itself, where it lies.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from muon_jax import _checks
from muon_jax._types import Matrices, Orthogonalizer

# One matrix keeps a CPU's cores busy and its cache warm. `python benchmarks/batching.py` compares
# the ways on the machine at hand.
_CPU_CHUNK_BYTES = 1

# One matrix of 512 × 512, and one at a time of all that are larger. By the estimate of the TPU
# compiler 24 matrices of 1024 × 1024 cost 0.92 of what they cost in chunks of 16 MiB and 0.47 of
# what they cost in one stack; 24 of 512 × 512 cost 1.08 of what they cost in chunks of 4 MiB, whose
# program takes five times as long to compile.
_ACCELERATOR_CHUNK_BYTES = 2**20


def orthogonalize_all(
    matrices: Sequence[Matrices],
    orthogonalizer: Orthogonalizer,
    chunk_bytes: int | None = None,
    *,
    call: str,
) -> list[Matrices]:
    """Orthogonalises batches of matrices of any shapes.

    Args:
      matrices: arrays of shape (batch, rows, cols).
      orthogonalizer: sees batches of wide matrices (rows ≤ cols): the polar factor commutes with
        transposition, so a tall matrix shares the computation of a wide one.
      chunk_bytes: bound on the size of the stack, in float32, that one call of the orthogonalizer
        sees, which bounds its working memory to a few times this; at least one matrix is always
        taken. None takes one matrix at a time on CPUs and 1 MiB elsewhere.
      call: the public call, for messages.

    Returns:
      The results in the order, shapes and dtypes of `matrices`.
    """
    results = _compiled(tuple(matrices), orthogonalizer, chunk_bytes, call)
    return list(results)


# Compiled by itself, so that an update called outside of jit compiles once.
@functools.partial(jax.jit, static_argnames=("orthogonalizer", "chunk_bytes", "call"))
def _compiled(
    matrices: tuple[Matrices, ...],
    orthogonalizer: Orthogonalizer,
    chunk_bytes: int | None,
    call: str,
) -> tuple[Matrices, ...]:
    def by_shape(*matrices: Matrices) -> tuple[Matrices, ...]:
        return _by_shape(matrices, orthogonalizer, chunk_bytes or _CPU_CHUNK_BYTES, call)

    def one_by_one(*matrices: Matrices) -> tuple[Matrices, ...]:
        chunk = chunk_bytes or _ACCELERATOR_CHUNK_BYTES
        return tuple(_by_itself(each, orthogonalizer, chunk, call) for each in matrices)

    return lax.platform_dependent(*matrices, cpu=by_shape, default=one_by_one)


# Traced once for all arrays of a shape: CPUs trace this as well, though they do not run it.
@functools.partial(jax.jit, static_argnames=("orthogonalizer", "chunk_bytes", "call"))
def _by_itself(
    batch: Matrices, orthogonalizer: Orthogonalizer, chunk_bytes: int, call: str
) -> Matrices:
    turned = _is_tall(batch) and not getattr(orthogonalizer, "either_way", False)
    stack = batch.mT if turned else batch
    if stack.size:
        stack = _in_chunks(stack, orthogonalizer, chunk_bytes, call)
    return stack.mT if turned else stack


def _by_shape(
    matrices: Sequence[Matrices], orthogonalizer: Orthogonalizer, chunk_bytes: int, call: str
) -> tuple[Matrices, ...]:
    buckets: dict[tuple[int, int, jnp.dtype], list[int]] = {}
    for index, batch in enumerate(matrices):
        short, long = sorted(batch.shape[1:])
        buckets.setdefault((short, long, batch.dtype), []).append(index)
    results = dict[int, Matrices]()
    for members in buckets.values():
        stack = _stacked([_wide(matrices[index]) for index in members])
        if stack.size:
            stack = _in_chunks(stack, orthogonalizer, chunk_bytes, call)
        batches = [matrices[index] for index in members]
        for index, part in zip(members, _unstacked(stack, batches), strict=True):
            results[index] = part.mT if _is_tall(matrices[index]) else part
    return tuple(results[index] for index in range(len(matrices)))


def _in_chunks(
    stack: Matrices, orthogonalizer: Orthogonalizer, chunk_bytes: int, call: str
) -> Matrices:
    """Replaces the stack by its result chunk by chunk, in one buffer."""
    chunk = _chunk_size(len(stack), 4 * stack[0].size, chunk_bytes)
    whole, rest = divmod(len(stack), chunk)
    if whole <= 1 and not rest:
        return _result(orthogonalizer, stack, call)

    def replace(index: int | Array, stack: Matrices, size: int) -> Matrices:
        part = lax.dynamic_slice_in_dim(stack, index, size)
        return lax.dynamic_update_slice_in_dim(stack, _result(orthogonalizer, part, call), index, 0)

    stack = lax.fori_loop(0, whole, lambda i, stack: replace(i * chunk, stack, chunk), stack)
    return replace(whole * chunk, stack, rest) if rest else stack


def _result(orthogonalizer: Orthogonalizer, part: Matrices, call: str) -> Matrices:
    """Refuses another shape, of which a buffer would take what fits and keep what was there."""
    result = orthogonalizer(part)
    if result.shape != part.shape:
        remedy = f"it makes {result.shape} of {part.shape}: return the shape that came"
        raise _checks.invalid(call, "orthogonalizer", orthogonalizer, remedy)
    return result.astype(part.dtype)


def _chunk_size(count: int, matrix_bytes: int, chunk_bytes: int) -> int:
    """Returns how many matrices a chunk holds: as many as fit, in chunks of about one size."""
    most = max(1, chunk_bytes // matrix_bytes)
    chunks = math.ceil(count / most)
    return math.ceil(count / chunks)


def _stacked(batches: Sequence[Matrices]) -> Matrices:
    return batches[0] if len(batches) == 1 else jnp.concatenate(batches)


def _unstacked(stack: Matrices, batches: Sequence[Matrices]) -> list[Matrices]:
    """Cuts a stack into parts as long as the batches that it was made of."""
    ends = list(itertools.accumulate(map(len, batches)))
    starts = [end - len(batch) for end, batch in zip(ends, batches, strict=True)]
    if len(batches) == 1 or not stack.size:
        return [lax.slice_in_dim(stack, *span) for span in zip(starts, ends, strict=True)]
    starts = _read_at_run_time(starts, stack)
    return [
        lax.dynamic_slice_in_dim(stack, start, len(batch))
        for start, batch in zip(starts, batches, strict=True)
    ]


def _read_at_run_time(numbers: Sequence[int], stack: Matrices) -> list[Int[Array, ""]]:
    """Returns the numbers as values that the compiler does not know.

    XLA compiles a slice at a known place to a kernel of its own, 20 ms each on a CPU, which is most
    of the compile time of a step; slices at places that it must read are one kernel for a stack.
    Both branches below say the same, so whatever the stack holds the numbers are right.
    """

    def constants() -> list[Int[Array, ""]]:
        return [jnp.int32(number) for number in numbers]

    return lax.cond(jnp.isnan(stack[0, 0, 0]), constants, constants)


def _is_tall(batch: Matrices) -> bool:
    return batch.shape[1] > batch.shape[2]


def _wide(batch: Matrices) -> Matrices:
    return batch.mT if _is_tall(batch) else batch
