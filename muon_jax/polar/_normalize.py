"""Scales matrices so that no singular value exceeds one, for every finite input.

A polar iteration converges only from singular values in (0, 1], and faster the closer the largest
is to one. The Schatten-8 norm of X, ‖σ‖₈ = ‖(XXᵀ)²‖_F^¼, is a certified bound that is at most
m^⅛ too large for m rows, where the Frobenius norm may be √m too large; and its ingredients XXᵀ and
(XXᵀ)² are just what the first step of the iteration multiplies anyway.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax._types import Matrices, wide_dtype
from muon_jax.polar._precision import Arithmetic

Matrix = Float[Array, "*batch rows cols"]
Wide = Float[Array, "*batch rows cols"]
Square = Float[Array, "*batch rows rows"]

_MATRIX = (-2, -1)
_SUBNORMAL_LIFT = 64  # binary orders; any number that moves subnormals well into the normal range
_FLOAT32_SUBNORMAL_UNIT = -149  # the smallest positive float32 is 2^-149


class Normalized(NamedTuple):
    """A bound on the largest singular value of X, and the Gram matrix R of X / bound.

    X itself is left to the first step, whose factor takes the bound in for a square product's worth
    of memory traffic where dividing X would cost a wide one.
    """

    bound: Float[Array, "*batch 1 1"]
    gram: Square
    gram_squared: Square | None


def normalize_schatten(matrix: Matrix, arithmetic: Arithmetic) -> Normalized:
    """Bounds by the Schatten-8 norm, whose eighth power is in range if entries are of order one."""
    size = 2.0 ** round(math.log2(math.prod(matrix.shape[-2:])) / 2)
    gram = arithmetic.gram(matrix) / size
    gram_squared = arithmetic.multiply(gram, gram)
    largest = nonzero(jnp.sqrt(_frobenius(gram_squared)))  # bounds the eigenvalues of `gram`
    inverse = 1 / largest
    return Normalized(jnp.sqrt(size * largest), gram * inverse, gram_squared * jnp.square(inverse))


def normalize_frobenius(matrix: Matrix, arithmetic: Arithmetic) -> Normalized:
    """Bounds by the Frobenius norm, as the published Newton-Schulz iterations do."""
    gram = arithmetic.gram(matrix)
    trace = nonzero(jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None])
    return Normalized(jnp.sqrt(trace), gram / trace, None)


def on_wide(call: str, matrices: Matrices, polar: Callable[[Wide], Wide]) -> Matrices:
    """Runs a polar map on matrices as it wants them, and gives results back as they came.

    The map sees float32 or wider, short side first, entries of order one, and no batch axis where
    the batch is of one: backends multiply plain matrices faster than batches of one.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if they have no batch axis, or several.
    """

    def turned(stack: Array) -> Array:
        unit = to_unit_range(stack)
        return polar(unit.mT).mT if unit.shape[-2] > unit.shape[-1] else polar(unit)

    return _checked(call, matrices, turned)


def as_stored(
    call: str,
    matrices: Matrices,
    polar: Callable[[Matrices], Matrices],
    operands: Callable[[int, int], str | None],
) -> Matrices:
    """Runs a polar map that takes wide and tall matrices, where subnormals are flushed anyway.

    As `on_wide`, in one reduction and one multiplication, which fuse into the first product. What
    the map reads as bfloat16 alone, by `operands` of (rows, cols), is stored as bfloat16.
    """

    def scaled(stack: Array) -> Array:
        stack = stack.astype(wide_dtype(stack.dtype))
        if stack.dtype == jnp.float32 and operands(*stack.shape[-2:]) == "bfloat16":
            # Half of it, because the largest float32 itself would round to infinity.
            stack = (stack / 2).astype(jnp.bfloat16).astype(stack.dtype)
        return polar(stack * to_order_of_one(jnp.max(jnp.abs(stack), axis=_MATRIX, keepdims=True)))

    return _checked(call, matrices, scaled)


def _checked(call: str, matrices: Matrices, polar: Callable[[Array], Array]) -> Matrices:
    if not jnp.issubdtype(matrices.dtype, jnp.floating):
        remedy = "Give real ones; the polar factor of A + iB is that of [[A, -B], [B, A]]"
        raise _checks.refused(call, f"the matrices are {matrices.dtype}", remedy, TypeError)
    if matrices.ndim != 3:
        remedy = "Give (batch, rows, cols), such as matrix[None] of one alone"
        raise _checks.refused(call, f"the matrices have shape {matrices.shape}", remedy)
    if matrices.size == 0:
        return matrices
    done = polar(matrices[0] if len(matrices) == 1 else matrices)
    return done.astype(matrices.dtype).reshape(matrices.shape)


def to_unit_range(matrix: Wide) -> Wide:
    """Multiplies each matrix by the power of two that brings its largest entry to the order of one.

    Powers of two are exact, so the polar factor of the result is that of the input. Half-precision
    input is widened to float32.
    """
    if matrix.dtype != jnp.float64:
        matrix = _lift_subnormals(matrix.astype(jnp.float32))
    return matrix * to_order_of_one(jnp.max(jnp.abs(matrix), axis=_MATRIX, keepdims=True))


def to_order_of_one(size: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the power of two that brings a size to the order of one.

    The size's inverse would not do: that of a large one is subnormal, which backends flush to zero.
    """
    number = jnp.finfo(size.dtype)
    exponent = lax.bitcast_convert_type(size, f"int{number.bits}") >> number.nmant
    largest = 2 * number.maxexp - 3
    # The exponent 0 is that of subnormals, which are flushed as well.
    inverse = jnp.clip(largest - exponent, 1, largest)
    return lax.bitcast_convert_type(inverse << number.nmant, size.dtype)


def _lift_subnormals(matrix: Float[Array, "*batch rows cols"]) -> Wide:
    """Multiplies tiny matrices by 2^64, reading subnormal entries from their bits.

    Backends flush subnormal operands to zero, which would turn a tiny gradient into no gradient.
    """
    bits = lax.bitcast_convert_type(matrix, jnp.uint32)
    tiny = jnp.max(bits & 0x7FFFFFFF, axis=_MATRIX, keepdims=True) < _bits_of(2.0**-64)
    subnormal = (bits & 0x7F800000) == 0
    mantissa = (bits & 0x007FFFFF).astype(jnp.float32)
    magnitude = mantissa * 2.0 ** (_SUBNORMAL_LIFT + _FLOAT32_SUBNORMAL_UNIT)
    from_bits = jnp.where(bits >> 31 == 0, magnitude, -magnitude)
    lifted = matrix * jnp.where(tiny, 2.0**_SUBNORMAL_LIFT, 1.0)
    return jnp.where(tiny & subnormal, from_bits, lifted)


def _bits_of(number: float) -> Array:
    return lax.bitcast_convert_type(jnp.float32(number), jnp.uint32)


def identity_like(square: Square) -> Square:
    """Returns one identity matrix for every matrix of a batch."""
    return jnp.broadcast_to(jnp.eye(square.shape[-1], dtype=square.dtype), square.shape)


def _frobenius(matrix: Float[Array, "*batch rows cols"]) -> Float[Array, "*batch 1 1"]:
    return jnp.sqrt(jnp.sum(jnp.square(matrix), axis=_MATRIX, keepdims=True))


def nonzero(divisor: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replaces zero by one, so that zero is divided into itself; NaN stays NaN."""
    return jnp.where(divisor == 0, 1, divisor)
