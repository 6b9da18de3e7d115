"""Scales matrices so that no singular value exceeds one, for every finite input.

A polar iteration converges only from singular values in (0, 1], and faster the closer the largest
is to one. The Schatten-8 norm of X, ‖σ‖₈ = ‖(XXᵀ)²‖_F^¼, is a bound that is at most a factor m^⅛
too large for m rows; the Frobenius norm is up to √m too large. The first step of the iteration
needs XXᵀ and (XXᵀ)² in any case.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax._types import Matrices, wide_dtype

Matrix = Float[Array, "*batch rows cols"]
Wide = Float[Array, "*batch rows cols"]
Square = Float[Array, "*batch rows rows"]
Scale = Float[Array, "*batch 1 1"]

_MATRIX = (-2, -1)
_SUBNORMAL_LIFT = 64  # exponent of two that moves subnormals well into the normal range
_FLOAT32_SUBNORMAL_UNIT = -149  # the smallest positive float32 is 2^-149


def schatten_norm(gram_squared: Square) -> Scale:
    """Returns the Schatten-8 norm of X from R², and one for zero."""
    return nonzero(jnp.sqrt(jnp.sqrt(_frobenius(gram_squared))))


def frobenius_norm(gram: Square) -> Scale:
    """Returns the Frobenius norm of X from R, and one for zero."""
    return nonzero(jnp.sqrt(jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]))


def on_wide(matrices: Matrices, polar: Callable[[Wide], Wide]) -> Matrices:
    """Calls a function of wide matrices; returns results in the orientation and dtype of the input.

    The function gets float32 or wider, short side first, multiplied by its `_unit_scale`, and no
    batch axis for a batch of one, because backends multiply plain matrices faster.

    Raises:
      TypeError: if the matrices are not real floating-point.
      ValueError: if they have no batch axis, or several.
    """

    def transposing(stack: Array) -> Array:
        unit = to_unit_range(stack)
        return polar(unit.mT).mT if unit.shape[-2] > unit.shape[-1] else polar(unit)

    return _checked(matrices, transposing)


def on_wide_or_tall(matrices: Matrices, polar: Callable[[Matrix, Scale], Matrix]) -> Matrices:
    """Calls a function of wide and tall matrices, on platforms that flush subnormals.

    Like `on_wide` without transposes. The function also gets the scale by which it has to multiply
    the matrices, because that costs nothing where it is fused into a product.
    """

    def with_scale(stack: Array) -> Array:
        stack = stack.astype(wide_dtype(stack.dtype))
        return polar(stack, _unit_scale(stack))

    return _checked(matrices, with_scale)


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
    """Multiplies each matrix by its `_unit_scale`; widens half precision to float32."""
    if matrix.dtype != jnp.float64:
        matrix = _lift_subnormals(matrix.astype(jnp.float32))
    return matrix * _unit_scale(matrix)


def _unit_scale(matrix: Matrix) -> Scale:
    """Returns the power of two that makes the largest entry of order (rows · cols)^-¼.

    The sum of squares of R² is then finite. The product is exact, so it has the same polar factor.
    """
    largest = jnp.max(jnp.abs(matrix), axis=_MATRIX, keepdims=True)
    return to_order_of_one(largest, -math.ceil(math.log2(math.prod(matrix.shape[-2:])) / 4))


def to_order_of_one(size: Float[Array, "..."], exponent: int = 0) -> Float[Array, "..."]:
    """Returns the power of two whose product with a size is of order one, or of 2^exponent.

    It is not 1 / size, because that is subnormal for a large size and backends flush it to zero.
    """
    number = jnp.finfo(size.dtype)
    exponent_of_size = lax.bitcast_convert_type(size, f"int{number.bits}") >> number.nmant
    largest = 2 * number.maxexp - 3
    # Subnormals have the exponent 0.
    inverse = jnp.clip(largest - exponent_of_size + exponent, 1, largest)
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
