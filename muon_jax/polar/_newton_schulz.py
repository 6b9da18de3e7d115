"""Newton-Schulz: a composition of odd polynomials that drives every singular value to one.

An odd polynomial of X changes only its singular values, p(U S Vᵀ) = U p(S) Vᵀ, and needs only
products: with the Gram matrix R = XXᵀ of the short side, p(X) = (c₀ I + c₁ R + c₂ R² + …) X.
Consecutive steps may run on the Gram matrix, Q ← Q (c₀ I + Z), R ← (c₀ I + Z) R (c₀ I + Z), and
multiply X once at the end; `muon_jax.polar._gram_plan` decides where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax._types import Matrices
from muon_jax.polar._gram_plan import TOLERANCE, Plan, plan
from muon_jax.polar._minimax import Schedule
from muon_jax.polar._normalize import (
    Matrix,
    Scale,
    Square,
    Wide,
    frobenius_norm,
    identity_like,
    on_wide,
    on_wide_or_tall,
    schatten_norm,
)
from muon_jax.polar._precision import ARITHMETICS, Arithmetic, arithmetic
from muon_jax.polar._schedules import CoefficientsLike, schedule

Coefficients: TypeAlias = Sequence[float | Float[Array, ""] | Scale]

# Rounding errors are random, and sums over fewer entries than this do not average them out.
_SMALLEST_ROUNDED_SIDE = 64

_NORMALIZATIONS = ("schatten", "frobenius")


@dataclass(frozen=True)
class NewtonSchulz:
    """The value that `newton_schulz` returns for a number format.

    Attributes:
      schedule: the coefficients of every step.
      arithmetic: the format in which products are formed.
      gram: whether steps may share a Gram matrix where that is cheaper.
      normalization: `"schatten"` or `"frobenius"`.
    """

    schedule: Schedule
    arithmetic: Arithmetic
    gram: bool
    normalization: str

    takes_tall = True  # tall matrices need no transpose

    @_checks.named("newton_schulz")
    def __call__(self, matrices: Matrices) -> Matrices:
        return lax.platform_dependent(matrices, cpu=self.on_cpu, default=self.on_accelerator)

    def on_cpu(self, matrices: Matrices) -> Matrices:
        """Orthogonalises on CPUs: subnormals are kept, and a transposed operand costs a copy."""
        return on_wide(matrices, self.on_wide)

    def on_accelerator(self, matrices: Matrices) -> Matrices:
        """Orthogonalises on accelerators: subnormals are flushed, and transposes are free."""
        return on_wide_or_tall(matrices, self._wide_or_tall)

    def on(self, platform: str) -> "NewtonSchulz":
        """Returns the orthogonalizer of a platform, which is this one on every platform."""
        del platform
        return self

    def operands(self, rows: int, cols: int) -> str | None:
        """Returns the name of the dtype to which operands of this shape are rounded, or None."""
        rounded = self._arithmetic(min(rows, cols)).operands
        return None if rounded is None else jnp.dtype(rounded).name

    @_checks.named("newton_schulz().plan")
    def plan(self, rows: int, cols: int) -> Plan:
        """Returns which steps share a Gram matrix for this shape; `print` it."""
        for name, size in (("rows", rows), ("cols", cols)):
            _checks.check_positive_int(name, size)
        short, long = sorted((rows, cols))
        return plan(
            self.schedule,
            long / short,
            roundoff=self._arithmetic(short).roundoff,
            tolerance=TOLERANCE if self.gram else 0.0,
            squared_by_norm=self.normalization == "schatten",
        )

    def flops(self, rows: int, cols: int) -> int:
        """Counts the FLOPs of the products for one matrix of this shape."""
        return self.plan(rows, cols).flops(rows, cols) if rows and cols else 0

    def on_wide(self, matrix: Wide) -> Wide:
        """Orthogonalises a wide matrix of unit range, or a batch of them."""
        return self._wide_or_tall(matrix, 1.0, alike=False)

    def _wide_or_tall(self, matrix: Matrix, scale: Scale | float, alike: bool = True) -> Matrix:
        """Orthogonalises a matrix, or a batch, wide or tall, that has unit range after scaling.

        With `alike`, and if products round, all steps have the same operations, because XLA:TPU
        compiles equal products once. XLA then sees neither the coefficients nor which step is the
        first.
        """
        rows, cols = matrix.shape[-2:]
        arithmetic = self._arithmetic(min(rows, cols))
        schedule, is_first = self.schedule, [True] + [False] * len(self.schedule)
        alike = alike and arithmetic.rounds
        if alike:
            schedule = jax.tree.map(lambda number: np.asarray(number, matrix.dtype), schedule)
            schedule, is_first = lax.optimization_barrier((schedule, is_first))
        else:
            matrix = matrix * scale
        for start, stop in self.plan(rows, cols).segments:
            if alike:
                matrix = lax.optimization_barrier(matrix) * jnp.where(is_first[start], scale, 1)
            else:
                matrix = arithmetic.rounded(matrix)  # saves memory traffic on CPUs
            steps = schedule[start:stop]
            gram = arithmetic.gram(matrix)
            gram_squared = arithmetic.multiply(gram, gram) if len(steps[0]) > 2 else None
            if not start or (alike and gram_squared is not None):
                bound = jnp.where(is_first[start], self._bound(gram, gram_squared, arithmetic), 1)
                # After the first step the bound is one, and multiplying is less work.
                first = [c * bound for c in steps[0]] if start else _divided(steps[0], bound)
                steps = (first, *steps[1:])
            if len(steps) == 1 and arithmetic.rounds:
                # Adding the multiple of the identity to the factor would round it more than
                # adding the exact multiple of X to the product. Both terms use the same rounded X.
                ((linear, *higher),) = steps
                factor = _polynomial(gram, gram_squared, higher, arithmetic)
                product = arithmetic.on_short_side(factor, matrix)
                matrix = arithmetic.rounded_in_place(matrix.astype(product.dtype))
                matrix = linear * matrix + product
            else:
                factor = _factor(gram, gram_squared, steps, arithmetic)
                matrix = arithmetic.on_short_side(factor, matrix)
        return matrix

    def _bound(self, gram: Square, gram_squared: Square | None, arithmetic: Arithmetic) -> Scale:
        if self.normalization == "frobenius":
            return frobenius_norm(gram)
        return schatten_norm(
            arithmetic.multiply(gram, gram) if gram_squared is None else gram_squared
        )

    def _arithmetic(self, short: int) -> Arithmetic:
        return self.arithmetic if short >= _SMALLEST_ROUNDED_SIDE else ARITHMETICS["float32"]


@dataclass(frozen=True)
class AutoNewtonSchulz:
    """The value that `newton_schulz` returns by default: the platform decides the number format.

    The choice is made at lowering, so that a host can compile for another platform.

    Attributes:
      cpu: for CPUs and, on every platform, for matrices of float64: full precision.
      accelerator: for all other platforms: bfloat16 operands, float32 sums.
    """

    cpu: NewtonSchulz
    accelerator: NewtonSchulz

    takes_tall = True

    @_checks.named("newton_schulz")
    def __call__(self, matrices: Matrices) -> Matrices:
        if matrices.dtype == jnp.float64:
            return self.cpu(matrices)
        return lax.platform_dependent(
            matrices, cpu=self.cpu.on_cpu, default=self.accelerator.on_accelerator
        )

    def on(self, platform: str) -> NewtonSchulz:
        """Returns the orthogonalizer of a platform, such as `"cpu"`, `"tpu"` or `"cuda"`."""
        return self.cpu if platform == "cpu" else self.accelerator

    def plan(self, rows: int, cols: int) -> Plan:
        """Returns the plan for CPUs; `on(platform).plan` is for another platform."""
        return self.cpu.plan(rows, cols)

    def flops(self, rows: int, cols: int) -> int:
        """Counts the FLOPs of the products for one matrix of this shape on a CPU."""
        return self.cpu.flops(rows, cols)


@_checks.named("newton_schulz")
def newton_schulz(
    coefficients: CoefficientsLike = "fast",
    *,
    steps: int | None = None,
    dtype: Any = None,
    form: Literal["auto", "direct"] = "auto",
    normalization: Literal["schatten", "frobenius"] = "schatten",
) -> NewtonSchulz | AutoNewtonSchulz:
    """Makes the orthogonalizer that applies a schedule of odd polynomials to the singular values.

    A schedule maps singular values in [ℓ, 1] to a narrow band around one, and multiplies smaller
    ones by the product of its slopes. `docs/explanation/orthogonalizers.md` compares the schedules.

    Args:
      coefficients: `"fast"` or `"accurate"`, designs of this library; `"minimax"`, its design of
        `steps` quintic steps; a published schedule: `"keller"`, `"polar_express"`, `"cans"`,
        `"you"`, `"dion"` and others, listed in the error for an unknown name; one row (c₀, c₁, …)
        of c₀x + c₁x³ + …, repeated at every step; or one row for each step.
      steps: number of steps; None is the schedule's own number, and 5 for one row.
      dtype: format of the operands of every product; sums are always float32 or wider. None is
        bfloat16 on TPU and GPU, float32 on CPU, and full precision for float64 matrices, by the
        platform for which the program is lowered. `"float32"` is full float32 on every platform;
        `"bfloat16"` and `"float16"` are much faster on matrix units; `"tensorfloat32"` is TF32 on
        NVIDIA GPUs. Matrices with a short side under 64 stay in float32, because their rounding
        errors would not average out.
      form: `"auto"` lets steps share one Gram matrix where that is cheaper and accurate enough;
        `"direct"` runs every step on the matrix itself.
      normalization: `"schatten"` divides by the Schatten-8 norm, a tight bound that needs no
        further products; `"frobenius"` divides by the Frobenius norm, as published iterations do.

    Returns:
      An orthogonalizer: a callable from (batch, rows, cols) to the same shape and dtype. It is a
      hashable value with `plan(rows, cols)` and `flops(rows, cols)`.

    Raises:
      TypeError or ValueError: for an unknown name, unusable coefficients, or more steps than a
        schedule has rows, unless its last row repeats.

    Examples:
      >>> import jax, muon_jax
      >>> polar = muon_jax.newton_schulz("accurate")
      >>> y = polar(jax.random.normal(jax.random.key(0), (1, 64, 256)))[0]
      >>> bool(jax.numpy.allclose(y @ y.T, jax.numpy.eye(64), atol=0.02))
      True
      >>> print(muon_jax.newton_schulz("keller").plan(64, 64))
      steps 1-5 on X; 10 wide and 5 square products

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024;
      Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025
    """
    _checks.check_choice("form", form, ("auto", "direct"))
    _checks.check_choice("normalization", normalization, _NORMALIZATIONS)

    def of(dtype: Any) -> NewtonSchulz:
        number_format = arithmetic(dtype)
        rows = schedule(coefficients, steps, arithmetic=number_format.name)
        return NewtonSchulz(rows, number_format, form == "auto", normalization)

    return AutoNewtonSchulz(of("float32"), of("bfloat16")) if dtype is None else of(dtype)


def _divided(row: Coefficients, bound: Scale) -> Coefficients:
    """Returns the coefficients of p(X / bound) for those of p(X)."""
    inverse = 1 / bound
    return [coefficient * inverse ** (2 * k + 1) for k, coefficient in enumerate(row)]


def _factor(
    gram: Square, gram_squared: Square | None, steps: Sequence[Coefficients], arithmetic: Arithmetic
) -> Square:
    """Composes steps on the Gram matrix R; returns the Q of X ← QX."""
    total = gram
    for index, (linear, *higher) in enumerate(steps):
        polynomial = _polynomial(gram, gram_squared, higher, arithmetic)
        step = linear * identity_like(gram) + polynomial
        total = arithmetic.multiply(total, step) if index else step
        if index + 1 < len(steps):
            gram, gram_squared = arithmetic.multiply(step, arithmetic.multiply(gram, step)), None
    return total


def _polynomial(
    gram: Square, gram_squared: Square | None, coefficients: Coefficients, arithmetic: Arithmetic
) -> Square:
    """Returns c₁ R + c₂ R² + c₃ R³ + c₄ R⁴ with the fewest products for its degree."""
    total = coefficients[0] * gram
    if len(coefficients) == 1:
        return total
    if gram_squared is None:
        gram_squared = _unfused(arithmetic.multiply(gram, gram), arithmetic)
    total = total + coefficients[1] * gram_squared
    if len(coefficients) == 2:
        return total
    inner = coefficients[2] * gram
    if len(coefficients) == 4:
        inner = inner + coefficients[3] * gram_squared
    return total + _unfused(arithmetic.multiply(gram_squared, inner), arithmetic)


def _unfused(product: Square, arithmetic: Arithmetic) -> Square:
    """Keeps XLA from fusing a product into the next, or storing the other summand as bfloat16.

    By the cost model of XLA:TPU, both take a fifth to a third longer.
    """
    return lax.optimization_barrier(product) if arithmetic.rounds else product
