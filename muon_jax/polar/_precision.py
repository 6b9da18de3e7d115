"""Explicit matmul precision for every product.

JAX's default precision turns a float32 product into one bfloat16 pass on TPU and into TF32 on GPU.
A polar iteration that was planned for float32 may then diverge.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax._types import wide_dtype
from muon_jax.polar._gram_plan import ROUNDOFF


@dataclass(frozen=True)
class Arithmetic:
    """A format for the operands of a product; sums are always float32 or wider.

    Attributes:
      name: the user's name for it.
      operands: the dtype to which operands are rounded, or None for no rounding.
      precision: the precision of `lax.dot_general`.
    """

    name: str
    operands: Any
    precision: lax.Precision

    @property
    def roundoff(self) -> float:
        """The relative error of a rounded operand."""
        return ROUNDOFF[self.name]

    @property
    def rounds(self) -> bool:
        """Whether operands have fewer digits than the iterate."""
        return self.name != "float32"

    def rounded(self, matrix: Float[Array, "..."]) -> Float[Array, "..."]:
        """Casts an operand to the dtype of operands."""
        return matrix if self.operands is None else matrix.astype(self.operands)

    def rounded_in_place(self, matrix: Float[Array, "..."]) -> Float[Array, "..."]:
        """Rounds an operand to the digits of that dtype, and keeps its own dtype."""
        if self.operands is None:
            return matrix
        number = jnp.finfo(self.operands)
        return lax.reduce_precision(matrix, number.nexp, number.nmant)

    def multiply(
        self, left: Float[Array, "*batch rows inner"], right: Float[Array, "*batch inner cols"]
    ) -> Float[Array, "*batch rows cols"]:
        """Returns the product of two matrices, or of two batches."""
        return self._contract(left, right, (left.ndim - 1, right.ndim - 2))

    def gram(self, matrix: Float[Array, "*batch rows cols"]) -> Float[Array, "*batch short short"]:
        """Returns the Gram matrix of the short side, XXᵀ or XᵀX.

        The program has no transpose, because XLA:CPU multiplies half-precision operands in float32
        if one is the transpose of the other, and XLA:TPU copies transposed operands.
        """
        rows, cols = matrix.shape[-2:]
        long = matrix.ndim - (2 if rows > cols else 1)
        return self._contract(matrix, matrix, (long, long))

    def on_short_side(
        self, factor: Float[Array, "*batch short short"], matrix: Float[Array, "*batch rows cols"]
    ) -> Float[Array, "*batch rows cols"]:
        """Multiplies a matrix by a symmetric factor, on its short side."""
        rows, cols = matrix.shape[-2:]
        return self.multiply(matrix, factor) if rows > cols else self.multiply(factor, matrix)

    def _contract(
        self, left: Float[Array, "..."], right: Float[Array, "..."], axes: tuple[int, int]
    ) -> Float[Array, "..."]:
        """Contracts one axis of each operand; batch axes come first."""
        batch = tuple(range(left.ndim - 2))
        return lax.dot_general(
            self.rounded(left),
            self.rounded(right),
            (((axes[0],), (axes[1],)), (batch, batch)),
            precision=self.precision,
            preferred_element_type=wide_dtype(left.dtype),
        )


ARITHMETICS = MappingProxyType(
    {
        each.name: each
        for each in (
            Arithmetic("float32", None, lax.Precision.HIGHEST),
            # HIGH is TF32 on NVIDIA GPUs, three bfloat16 passes on TPUs, float32 on CPUs.
            Arithmetic("tensorfloat32", None, lax.Precision.HIGH),
            Arithmetic("float16", jnp.float16, lax.Precision.DEFAULT),
            Arithmetic("bfloat16", jnp.bfloat16, lax.Precision.DEFAULT),
        )
    }
)


def arithmetic(dtype: Any) -> Arithmetic:
    """Resolves a dtype or its name."""
    name = dtype if isinstance(dtype, str) else _dtype_name(dtype)
    _checks.check_choice("dtype", name, tuple(ARITHMETICS))
    return ARITHMETICS[name]


def _dtype_name(dtype: Any) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return repr(dtype)
