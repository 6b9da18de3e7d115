"""Scales matrices so that no singular value exceeds one, for every finite input.

A polar iteration converges only from singular values in (0, 1], and faster the closer the largest
is to one. The Schatten-8 norm of X, ‖σ‖₈ = ‖(XXᵀ)²‖_F^¼, is a bound that is at most a factor m^⅛
too large for m rows; the Frobenius norm is up to √m too large. The first step of the iteration
needs XXᵀ and (XXᵀ)² in any case.
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
_SUBNORMAL_LIFT = 64  # exponent of two that moves subnormals well into the normal range
_FLOAT32_SUBNORMAL_UNIT = -149  # the smallest positive float32 is 2^-149


class Normalized(NamedTuple):
    """A bound on the largest singular value of X, and the Gram matrix R of X / bound.

    The first step divides its square factor by the bound, which is less work than dividing X.
    """

    bound: Float[Array, "*batch 1 1"]
    gram: Square
    gram_squared: Square | None


def normalize_schatten(matrix: Matrix, arithmetic: Arithmetic) -> Normalized:
    """Bounds by the Schatten-8 norm; its eighth power is finite for entries of order one."""
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


def on_wide(matrices: Matrices, polar: Callable[[Wide], Wide]) -> Matrices:
    """Calls a function of wide matrices; returns results in the orientation and dtype of the input.

    The function gets float32 or wider, short side first, entries of order one, and no batch axis
    for a batch of one, because backends multiply plain matrices faster than batches of one.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if they have no batch axis, or several.
    """

    def transposing(stack: Array) -> Array:
        unit = to_unit_range(stack)
        return polar(unit.mT).mT if unit.shape[-2] > unit.shape[-1] else polar(unit)

    return _checked(matrices, transposing)


def on_wide_or_tall(
    matrices: Matrices,
    polar: Callable[[Matrix], Matrix],
    operands: Callable[[int, int], str | None],
) -> Matrices:
    """Calls a function of wide and tall matrices, on platforms that flush subnormals.

    Like `on_wide` without transposes, in one reduction and one multiplication that fuse into the
    first product. If `operands(rows, cols)` is bfloat16, matrices are stored as bfloat16.
    """

    def scaled(stack: Array) -> Array:
        stack = stack.astype(wide_dtype(stack.dtype))
        if stack.dtype == jnp.float32 and operands(*stack.shape[-2:]) == "bfloat16":
            # Halved, because the largest float32 would round to infinity in bfloat16.
            stack = (stack / 2).astype(jnp.bfloat16).astype(stack.dtype)
        return polar(stack * to_order_of_one(jnp.max(jnp.abs(stack), axis=_MATRIX, keepdims=True)))

    return _checked(matrices, scaled)


def _checked(matrices: Matrices, polar: Callable[[Array], Array]) -> Matrices:
    if not jnp.issubdtype(matrices.dtype, jnp.floating):
        remedy = "Give real ones; the polar factor of A + iB is that of [[A, -B], [B, A]]"
        raise _checks.refused(f"the matrices are {matrices.dtype}", remedy, TypeError)
    if matrices.ndim != 3:
        remedy = "Give (batch, rows, cols), such as matrix[None] for one matrix"
        raise _checks.refused(f"the matrices have shape {matrices.shape}", remedy)
    if matrices.size == 0:
        return matrices
    done = polar(matrices[0] if len(matrices) == 1 else matrices)
    return done.astype(matrices.dtype).reshape(matrices.shape)


def to_unit_range(matrix: Wide) -> Wide:
    """Multiplies each matrix by a power of two, so that its largest entry is of order one.

    That is exact, so the result has the polar factor of the input. Half-precision input is widened
    to float32.
    """
    if matrix.dtype != jnp.float64:
        matrix = _lift_subnormals(matrix.astype(jnp.float32))
    return matrix * to_order_of_one(jnp.max(jnp.abs(matrix), axis=_MATRIX, keepdims=True))


def to_order_of_one(size: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the power of two whose product with a size is of order one.

    It is not 1 / size, because that is subnormal for a large size and backends flush it to zero.
    """
    number = jnp.finfo(size.dtype)
    exponent = lax.bitcast_convert_type(size, f"int{number.bits}") >> number.nmant
    largest = 2 * number.maxexp - 3
    # Subnormals have the exponent 0.
    inverse = jnp.clip(largest - exponent, 1, largest)
    return lax.bitcast_convert_type(inverse << number.nmant, size.dtype)


def _lift_subnormals(matrix: Float[Array, "*batch rows cols"]) -> Wide:
    """Multiplies tiny matrices by 2^64, reading subnormal entries from their bits.

    Backends flush subnormal operands to zero, so a tiny gradient would become zero.
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
    """Returns an identity matrix for every matrix of a batch."""
    return jnp.broadcast_to(jnp.eye(square.shape[-1], dtype=square.dtype), square.shape)


def _frobenius(matrix: Float[Array, "*batch rows cols"]) -> Float[Array, "*batch 1 1"]:
    return jnp.sqrt(jnp.sum(jnp.square(matrix), axis=_MATRIX, keepdims=True))


def nonzero(divisor: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replaces zero by one, for divisions that leave zero as zero; NaN stays NaN."""
    return jnp.where(divisor == 0, 1, divisor)
