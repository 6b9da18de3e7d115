"""Preconditioning in the eigenbases of Gram matrices: SOAP-Muon.

Equal leaves form stacks, and the state is that of stacks. On a mesh every device computes, and
keeps the state of, the matrices that it owns.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from muon_jax import _checks
from muon_jax._types import Batch, Matrices, wide_dtype
from muon_jax.mesh._constraints import with_sharding_of
from muon_jax.mesh._owned import on_owners, placed
from muon_jax.polar._normalize import nonzero
from muon_jax.transforms._ema import ema, mean_size, root_mean_square
from muon_jax.transforms.precondition._preconditioner import Viewed
from muon_jax.transforms.precondition._second_moment import refuse_shards
from muon_jax.trees._paths import kind_of_path
from muon_jax.views._matrix_axes import MatrixAxes, Shape, transposed

# Added to the eigenvalues, as a share of their sum: in directions without gradients, columns of the
# basis stay unchanged instead of following rounding errors.
_DAMPING = 1e-5

# Added to root mean squares, as a share of their mean: directions without gradients hold only
# rounding errors of the rotation, which must not be divided by themselves.
_FLOOR = 1e-2

_EVERY_STEP_UNTIL = 10  # steps, because the first gradients determine the eigenbases poorly


class Side(NamedTuple):
    """The state of SOAP for one side of the matrices of a stack.

    Attributes:
      gram: moving average of the Gram matrices of the gradients.
      basis: orthonormal columns that approximate its eigenvectors, large eigenvalues first.
    """

    gram: Float[Array, "*batch side side"]
    basis: Float[Array, "*batch side side"]


class SoapState(NamedTuple):
    """The state of `Soap` for the matrices of a stack of equal leaves.

    Its arrays have the leaves as first axis, then their batch axes and the equal parts of a split.

    Attributes:
      size: root mean square of the directions in the eigenbases.
      rows: of the rows; None where they are not rotated.
      cols: of the columns, likewise.
    """

    size: Float[Array, "*batch rows cols"]
    rows: Side | None
    cols: Side | None


Stacks: TypeAlias = dict[str, list[list[SoapState]]]
"""The state of every stack by the path of its leaves, with `#` for numbers. Stacks of one path but
other shapes follow each other; the state of a stack has an entry for every part of its view."""


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
    5r². On a mesh each device has the state of the matrices that it owns. Products are made of
    three bfloat16 passes on TPUs, because with one such runs end higher.

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
    def keeps(self) -> Literal["stacks"]:
        return "stacks"

    def init(self, leaves: Sequence[Array], viewed: Viewed) -> Stacks:
        stacks = _stacks(leaves, viewed)
        state = [
            [self._zeros(shape, wide_dtype(jnp.result_type(leaf))) for shape in stack.part_shapes]
            for stack, leaf in ((stack, leaves[stack.members[0]]) for stack in stacks)
        ]
        ndims = [stack.batch_ndim for stack in stacks]
        return _by_kind(stacks, placed(state, ndims, viewed.owners, leaves))

    def apply(
        self,
        directions: Sequence[Array],
        gradients: Sequence[Array],
        state: Stacks,
        count: Int[Array, ""],
        viewed: Viewed,
    ) -> tuple[list[Array], Stacks]:
        refuse_shards("SecondMoment()")
        stacks = _stacks(directions, viewed)

        def work(due: Any, moving: list[Any], state: list[Any]) -> tuple[list[Array], list[Any]]:
            parts = [
                list(zip(*map(stack.cut, pair), jax.tree.map(_merged, old), strict=True))
                for stack, pair, old in zip(stacks, moving, state, strict=True)
            ]
            averaged = [
                [self._averaged(gradient, old) for _, gradient, old in each] for each in parts
            ]
            new = [
                [self._divided(part[0], kept) for part, kept in zip(each, turned, strict=True)]
                for each, turned in zip(parts, _turned(averaged, due), strict=True)
            ]
            results = [
                stack.join([part for part, _ in each], pair[0])
                for stack, each, pair in zip(stacks, new, moving, strict=True)
            ]
            kept = [[part for _, part in each] for each in new]
            return results, jax.tree.map(lambda new, old: new.reshape(old.shape), kept, state)

        due = (count % self.every == 0) | (count < _EVERY_STEP_UNTIL)
        moving = [[stack.of(directions), stack.of(gradients)] for stack in stacks]
        ndims = [stack.batch_ndim for stack in stacks]
        entries = {kind: iter(each) for kind, each in state.items()}
        old = [next(entries[stack.kind]) for stack in stacks]
        results, new = on_owners(work, due, moving, old, ndims, viewed.owners)
        state = _by_kind(stacks, new)
        divided = dict[int, Array]()
        for stack, result in zip(stacks, results, strict=True):
            divided |= zip(stack.members, stack.leaves(result), strict=True)
        if viewed.owners is None:
            return [divided[place] for place in range(len(directions))], state
        return [
            with_sharding_of(each, divided[place]) for place, each in enumerate(gradients)
        ], state

    def _zeros(self, shape: Shape, dtype: Any) -> SoapState:
        *batch, rows, cols = shape

        def side(size: int, other: int) -> Side | None:
            if size > self.largest_side or (self.sides == "short" and size > other):
                return None
            basis = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (*batch, size, size))
            return Side(jnp.zeros_like(basis), basis)

        return SoapState(jnp.zeros(shape, dtype), side(rows, cols), side(cols, rows))

    def _averaged(self, gradient: Matrices, old: SoapState) -> SoapState:
        """Averages the Gram matrices of both sides."""

        def averaged(side: Side | None, gradient: Matrices) -> Side | None:
            if side is None:
                return None
            gradient = gradient.astype(side.gram.dtype)
            gram = ema(side.gram, self._product(gradient, gradient.mT), self.decay)
            return Side(gram, side.basis)

        return SoapState(old.size, averaged(old.rows, gradient), averaged(old.cols, gradient.mT))

    def _divided(self, direction: Matrices, state: SoapState) -> tuple[Matrices, SoapState]:
        size, rows, cols = state
        direction = direction.astype(size.dtype)
        if rows is not None:
            direction = self._product(rows.basis.mT, direction)
        if cols is not None:
            direction = self._product(direction, cols.basis)
        size = root_mean_square(size, direction, self.decay)
        direction = direction / nonzero(size + _FLOOR * mean_size(size, (1, 2)))
        if rows is not None:
            direction = self._product(rows.basis, direction)
        if cols is not None:
            direction = self._product(direction, cols.basis.mT)
        return direction, SoapState(size, rows, cols)

    def _product(
        self, left: Float[Array, "batch rows inner"], right: Float[Array, "batch inner cols"]
    ) -> Matrices:
        """Multiplies in three bfloat16 passes on TPUs, TF32 on GPUs, float32 on CPUs.

        One pass is too coarse for directions with small gradients: it costs half of the gain.
        """
        return jnp.matmul(left, right, precision=lax.Precision.HIGH)


def _turned(state: Any, due: Bool[Array, ""]) -> Any:
    """Returns the state with bases that are nearer to the eigenvectors, if that is due."""
    nodes, structure = jax.tree.flatten(state, is_leaf=_is_side)
    sides = list(filter(_is_side, nodes))
    bases = iter(lax.cond(due, _iterated, lambda sides: [side.basis for side in sides], sides))
    return structure.unflatten(
        Side(node.gram, next(bases)) if _is_side(node) else node for node in nodes
    )


def _iterated(sides: Sequence[Side]) -> list[Array]:
    """Applies one step of orthogonal iteration, matrix by matrix.

    Compilers for TPUs take ten times as long for a QR decomposition of a batch of eight.
    """

    def basis(side: Side) -> Array:
        image = jnp.matmul(side.gram, side.basis, precision=lax.Precision.HIGHEST)
        return jnp.linalg.qr(image + _DAMPING * jnp.trace(side.gram) * side.basis)[0]

    return [lax.map(basis, side) for side in sides]


def _is_side(node: Any) -> bool:
    return isinstance(node, Side)


def _merged(array: Array) -> Batch:
    """Merges all axes but the last two."""
    return array.reshape(-1, *array.shape[-2:])


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Leaves of one shape, view and kind, as an array (members, *batch, *rows, *cols).

    Attributes:
      kind: their path, with `#` for numbers.
      members: their positions among all leaves.
      shape: of one leaf.
      view: how a leaf is a batch of matrices.
    """

    kind: str
    members: tuple[int, ...]
    shape: Shape
    view: MatrixAxes

    @property
    def batch_ndim(self) -> int:
        return 1 + len(self.view.batch_axes(len(self.shape)))

    @property
    def part_shapes(self) -> list[Shape]:
        """Of every part: the batch axes of the stack, equal parts of a split, a matrix."""
        batch = [len(self.members), *(self.shape[i] for i in self.view.batch_axes(len(self.shape)))]
        one = math.prod(batch[1:])
        return [
            (*batch, *([count // one] if count > one else []), rows, cols)
            for count, rows, cols in self.view.matrix_shapes(self.shape)
        ]

    def of(self, leaves: Sequence[Array]) -> Array:
        return transposed(jnp.stack([leaves[member] for member in self.members]), self._order)

    def leaves(self, stack: Array) -> Array:
        order = self._order
        return transposed(stack, tuple(order.index(axis) for axis in range(len(order))))

    def cut(self, stack: Array) -> tuple[Batch, ...]:
        """Separates the matrices of a stack, or of a part of it along its batch axes."""
        return self._ordered.to_matrices(stack)

    def join(self, parts: Sequence[Batch], like: Array) -> Array:
        """Returns the matrices to the shape of the stack that they were cut from."""
        return self._ordered.from_matrices(parts, like.shape)

    @property
    def _order(self) -> Shape:
        return self.view.below_an_axis().order(1 + len(self.shape))

    @property
    def _ordered(self) -> MatrixAxes:
        first, middle = self.batch_ndim, self.batch_ndim + len(self.view.rows)
        last = 1 + len(self.shape)
        return MatrixAxes(range(first, middle), range(middle, last), self.view.split)


def _stacks(leaves: Sequence[Array], viewed: Viewed) -> list[_Stack]:
    members = dict[tuple[str, Shape, MatrixAxes], list[int]]()
    for place, (leaf, path, view) in enumerate(
        zip(leaves, viewed.paths, viewed.views, strict=True)
    ):
        members.setdefault((kind_of_path(path), leaf.shape, view), []).append(place)
    return [
        _Stack(kind, tuple(places), shape, view) for (kind, shape, view), places in members.items()
    ]


def _by_kind(stacks: Sequence[_Stack], entries: Sequence[list[SoapState]]) -> Stacks:
    found: Stacks = {}
    for stack, entry in zip(stacks, entries, strict=True):
        found.setdefault(stack.kind, []).append(entry)
    return found
