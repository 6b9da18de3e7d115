"""Preconditioners, which divide the momentum before orthogonalisation.

The polar factor gives all singular directions of the momentum the same weight, noise included. A
preconditioner divides by the root mean square of many gradients, so that directions in which large
gradients change sign get less weight than directions in which they agree.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from muon_jax import _checks
from muon_jax._types import Matrices, wide_dtype
from muon_jax.mesh._specs import manual_axes, with_explicit_as_auto
from muon_jax.mesh._state import zeros_sharded_as
from muon_jax.polar._normalize import nonzero
from muon_jax.transforms._ema import ema
from muon_jax.views._matrix_axes import MatrixAxes, Shape

# Added to the eigenvalues, as a share of their sum: in directions without gradients, columns of the
# basis stay unchanged instead of following rounding errors.
_DAMPING = 1e-5

# Added to root mean squares, as a share of their mean: directions without gradients hold only
# rounding errors of the rotation, which must not be divided by themselves.
_FLOOR = 1e-2

_EVERY_STEP_UNTIL = 10  # steps, because the first gradients determine the eigenbases poorly


@runtime_checkable
class Preconditioner(Protocol):
    """Divides the direction of one leaf by statistics of earlier gradients.

    Attributes:
      elementwise: whether the state of a leaf is one array like the leaf.
    """

    @property
    def elementwise(self) -> bool: ...

    def init(self, leaf: Array, view: MatrixAxes) -> Any:
        """Returns the state of a leaf."""
        ...

    def apply(
        self, direction: Array, gradient: Array, state: Any, count: Int[Array, ""], view: MatrixAxes
    ) -> tuple[Array, Any]:
        """Returns the new direction, in the shape of the old one, and the new state."""
        ...


class Factors(NamedTuple):
    """Root mean squares of the entries of each row and of each column.

    Both have the axes of the matrices; those that are averaged over have size one.
    """

    rows: Array
    cols: Array


@dataclasses.dataclass(frozen=True)
class SecondMoment:
    r"""Divides by the root mean square of earlier gradients, entry by entry: Muon².

    .. math::
      R \leftarrow \sqrt{\beta R^2 + (1 - \beta) G^2}, \qquad
      U = s \cdot \operatorname{polar}(M / R)

    The state is one array like the parameter, in float32. It stores R, not its square, so that
    gradients of every size keep full precision. With `factored`, it is one number for each row and
    column of a matrix, as in Adafactor: R is the product of their root mean squares over that of
    the whole matrix.

    Args:
      decay: β, in [0, 1).
      factored: whether to store root mean squares of rows and columns alone.

    Raises:
      TypeError or ValueError: for an unusable argument; with `factored`, at `update` inside
        `shard_map` or `pmap`, where a leaf may be a shard.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.scale_by_muon(precondition=muon_jax.SecondMoment(factored=True))

    References:
      `Muon² <https://arxiv.org/abs/2604.09967>`_, 2026;
      Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018
    """

    decay: float = 0.95
    factored: bool = False

    @_checks.named("SecondMoment", inside=True)
    def __post_init__(self):
        _checks.check_no_schedule("decay", self.decay)
        _checks.check_fraction("decay", self.decay)
        _checks.check_bool("factored", self.factored)

    @property
    def elementwise(self) -> bool:
        return not self.factored

    def init(self, leaf: Array, view: MatrixAxes) -> Array | tuple[Factors, ...]:
        wide = wide_dtype(jnp.result_type(leaf))
        if not self.factored:
            return zeros_sharded_as(leaf, wide)
        shapes = view.matrix_shapes(leaf.shape) if view.split else (leaf.shape,)
        rows, cols = _matrix_axes(view)

        def zeros(shape: Shape, averaged: Shape) -> Array:
            sizes = list(shape)
            for axis in averaged:
                sizes[axis] = 1
            return jnp.zeros(sizes, wide)

        return tuple(Factors(zeros(shape, cols), zeros(shape, rows)) for shape in shapes)

    def apply(
        self, direction: Array, gradient: Array, state: Any, count: Int[Array, ""], view: MatrixAxes
    ) -> tuple[Array, Any]:
        if self.factored:
            step = functools.partial(self._factored, *_matrix_axes(view))
            parts = view if view.split else None
            return _part_by_part(step, direction, gradient, state, count, parts)
        size = _root_mean_square(state, gradient, self.decay)
        return direction / nonzero(size), size

    def _factored(
        self,
        row_axes: Shape,
        col_axes: Shape,
        direction: Array,
        gradient: Array,
        old: Factors,
        count: Int[Array, ""],
    ) -> tuple[Array, Factors]:
        del count
        largest = nonzero(jnp.max(jnp.abs(gradient), axis=(*row_axes, *col_axes), keepdims=True))
        squares = jnp.square(gradient / largest)
        rows, cols = (
            _root_mean_square(
                kept, largest * jnp.sqrt(jnp.mean(squares, axis=axes, keepdims=True)), self.decay
            )
            for kept, axes in zip(old, (col_axes, row_axes), strict=True)
        )
        whole = nonzero(_mean_size(rows, row_axes))
        return direction / nonzero(rows / whole * cols), Factors(rows, cols)


class Side(NamedTuple):
    """The state of SOAP for one side of a batch of matrices.

    Attributes:
      gram: moving average of the Gram matrices of the gradients.
      basis: orthonormal columns that approximate its eigenvectors, large eigenvalues first.
    """

    gram: Float[Array, "batch side side"]
    basis: Float[Array, "batch side side"]


class SoapState(NamedTuple):
    """The state of `Soap` for one part of the view of a leaf.

    Attributes:
      size: root mean square of the directions in the eigenbases.
      rows: of the rows; None where they are not rotated.
      cols: of the columns, likewise.
    """

    size: Matrices
    rows: Side | None
    cols: Side | None


@dataclasses.dataclass(frozen=True)
class Soap:
    r"""Divides by root mean squares in the eigenbases of the Gram matrices: SOAP-Muon.

    With the eigenvectors P of the average of :math:`G G^\top` and Q of that of :math:`G^\top G`,

    .. math::
      D = P^\top M Q, \qquad R \leftarrow \sqrt{\beta R^2 + (1 - \beta) D^2}, \qquad
      U = s \cdot \operatorname{polar}(P (D / R) Q^\top).

    One step of orthogonal iteration, a product and a QR decomposition, updates the eigenvectors
    every `every` steps, and at each of the first ten. A matrix of r rows and c columns has
    r·c + 2·min(r, c)² numbers of state in float32, and a square one, whose sides are both rotated,
    5r². Under `jit` on a mesh XLA places this work. On TPUs a QR decomposition makes programs long.

    Args:
      decay: β, in [0, 1), of the root mean squares and of the Gram matrices.
      every: steps between two QR decompositions, at least 1.
      sides: `"short"` rotates only the short side of a matrix, or both sides of a square one;
        `"both"` always rotates both, with 2r² + 2c² numbers instead of 2·min(r, c)². Both trained
        equally well in our comparison.
      largest_side: sides longer than this are not rotated.

    Raises:
      TypeError or ValueError: for an unusable argument; at `update` inside `shard_map` or `pmap`,
        where a leaf may be a shard.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.scale_by_muon(precondition=muon_jax.Soap(every=10))

    References:
      Vyas et al., `SOAP <https://arxiv.org/abs/2409.11321>`_, 2024
    """

    decay: float = 0.9
    every: int = 5
    sides: Literal["short", "both"] = "short"
    largest_side: int = 8192

    @_checks.named("Soap", inside=True)
    def __post_init__(self):
        _checks.check_no_schedule("decay", self.decay)
        _checks.check_fraction("decay", self.decay)
        _checks.check_positive_int("every", self.every)
        _checks.check_choice("sides", self.sides, ("both", "short"))
        _checks.check_positive_int("largest_side", self.largest_side)

    @property
    def elementwise(self) -> bool:
        return False

    def init(self, leaf: Array, view: MatrixAxes) -> tuple[SoapState, ...]:
        wide = wide_dtype(jnp.result_type(leaf))
        shapes = view.matrix_shapes(leaf.shape)

        def side(batch: int, size: int, other: int) -> Side | None:
            if size > self.largest_side or (self.sides == "short" and size > other):
                return None
            basis = jnp.broadcast_to(jnp.eye(size, dtype=wide), (batch, size, size))
            return Side(jnp.zeros_like(basis), basis)

        return tuple(
            SoapState(size, side(b, r, c), side(b, c, r))
            for size, (b, r, c) in zip(
                view.to_matrices(zeros_sharded_as(leaf, wide)), shapes, strict=True
            )
        )

    def apply(
        self,
        direction: Array,
        gradient: Array,
        state: tuple[SoapState, ...],
        count: Int[Array, ""],
        view: MatrixAxes,
    ) -> tuple[Array, tuple[SoapState, ...]]:
        return _part_by_part(self._rotated, direction, gradient, state, count, view)

    def _rotated(
        self, direction: Matrices, gradient: Matrices, old: SoapState, count: Int[Array, ""]
    ) -> tuple[Matrices, SoapState]:
        due = (count % self.every == 0) | (count < _EVERY_STEP_UNTIL)
        size, rows, cols = old
        if rows is not None:
            rows = self._updated(rows, gradient, due)
            direction = _product(rows.basis.mT, direction)
        if cols is not None:
            cols = self._updated(cols, gradient.mT, due)
            direction = _product(direction, cols.basis)
        size = _root_mean_square(size, direction, self.decay)
        direction = direction / nonzero(size + _FLOOR * _mean_size(size, (1, 2)))
        if rows is not None:
            direction = _product(rows.basis, direction)
        if cols is not None:
            direction = _product(direction, cols.basis.mT)
        return direction, SoapState(size, rows, cols)

    def _updated(self, side: Side, gradient: Matrices, due: Bool[Array, ""]) -> Side:
        """Averages the Gram matrix of the rows, and updates its eigenvectors."""
        gram = ema(side.gram, _product(gradient, gradient.mT), self.decay)

        def moved(basis: Matrices) -> Matrices:
            trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
            images = jnp.matmul(gram, basis, precision=lax.Precision.HIGHEST)
            return jnp.linalg.qr(images + _DAMPING * trace * basis)[0]

        return Side(gram, lax.cond(due, moved, lambda basis: basis, side.basis))


PreconditionerLike: TypeAlias = Literal["second_moment", "soap"] | Preconditioner | None
"""The name of a preconditioner, or any object with its methods."""

_NAMED = MappingProxyType({"second_moment": SecondMoment(), "soap": Soap()})


def preconditioner(given: Any) -> Preconditioner | None:
    """Resolves the argument `precondition` of a public call."""
    if isinstance(given, str):
        _checks.check_choice("precondition", given, tuple(_NAMED))
        return _NAMED[given]
    if not isinstance(given, Preconditioner | None):
        remedy = "give 'second_moment', 'soap', a SecondMoment, a Soap, or None"
        raise _checks.invalid("precondition", given, remedy, TypeError)
    return given


def _part_by_part(
    step: Callable[..., tuple[Array, Any]],
    direction: Array,
    gradient: Array,
    state: Any,
    count: Int[Array, ""],
    view: MatrixAxes | None,
) -> tuple[Array, Any]:
    """Applies a step to every part of a leaf, with Explicit mesh axes as Auto ones.

    Args:
      step: from a part of the direction and of the gradient, its state and the count of steps to
        the new direction and state.
      direction: the leaf.
      gradient: of the same shape.
      state: of every part.
      count: of earlier steps.
      view: its batches of matrices are the parts; without a view the leaf is the only part.
    """
    if manual_axes():
        raise _checks.refused(
            "inside shard_map or pmap a leaf may be a shard, and statistics of a shard are not "
            "those of its matrix",
            "Call update under jit instead, or use SecondMoment()",
        )
    old, structure = jax.tree.flatten(state)

    def run(direction: Array, gradient: Array, count: Int[Array, ""], *old: Array) -> list[Array]:
        both = (each.astype(wide_dtype(each.dtype)) for each in (direction, gradient))
        parts = zip(
            *(view.to_matrices(each) if view else (each,) for each in both),
            structure.unflatten(old),
            strict=True,
        )
        new, states = zip(*(step(*part, count) for part in parts), strict=True)
        whole = view.from_matrices(new, direction.shape) if view else new[0]
        return [whole, *jax.tree.leaves(states)]

    divided, *new = with_explicit_as_auto(run, [direction, *old])(direction, gradient, count, *old)
    return divided, structure.unflatten(new)


def _matrix_axes(view: MatrixAxes) -> tuple[Shape, Shape]:
    """Returns the axes of rows and of columns of every part that `_part_by_part` applies."""
    return ((1,), (2,)) if view.split else (view.rows, view.cols)


def _mean_size(entries: Array, axes: int | tuple[int, ...]) -> Array:
    """Returns root mean squares along axes, which stay with size one, without overflow."""
    largest = nonzero(jnp.max(jnp.abs(entries), axis=axes, keepdims=True))
    return largest * jnp.sqrt(jnp.mean(jnp.square(entries / largest), axis=axes, keepdims=True))


def _root_mean_square(old: Array, new: Array, decay: float) -> Array:
    """Returns √(decay·old² + (1 − decay)·new²) without overflow of the squares."""
    return jnp.hypot(math.sqrt(decay) * old, math.sqrt(1 - decay) * new.astype(old.dtype))


def _product(
    left: Float[Array, "batch rows inner"], right: Float[Array, "batch inner cols"]
) -> Matrices:
    """Multiplies in three bfloat16 passes on TPUs, TF32 on GPUs, float32 on CPUs."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGH)
