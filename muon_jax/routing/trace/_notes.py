"""What happens to the parameters inside a loss."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from muon_jax.routing.trace._pieces import PARAM, Piece, Value
from muon_jax.views._matrix_axes import Shape


class Use(NamedTuple):
    """One contraction of a parameter with data: its axes summed over, produced and repeated."""

    rows: frozenset[int]
    cols: frozenset[int]
    batch: frozenset[int]
    groups: int = 1
    depthwise: bool = False


class Notes:
    """Collects what happens to every parameter, by its index.

    Attributes:
      shapes: shapes of the parameters.
      tokens: parameters, other than vectors, that their names route away from Muon. In a product
        with another parameter they count as learned tokens, because the other is the matrix.
      uses: contractions with data.
      axes: what else happens, by a word, and along which axes (-1: along none in particular).
      lost: reasons why the walk cannot follow the parameter everywhere.
      cuts: slices of outputs, or of the parameter itself.
      glued: the same slices where they are concatenated again, as rotary halves are.
      effects: what happens to slices: they are `bent` by a nonlinearity, or `scale` other data.
      applied: parameters whose outputs are inputs of a later parameter.
    """

    def __init__(self, shapes: Sequence[Shape], tokens: Iterable[int] = ()):
        self.shapes, self.tokens = shapes, frozenset(tokens)
        self.uses = [list[Use]() for _ in shapes]
        self.axes = [defaultdict[str, set[int]](set) for _ in shapes]
        self.lost = [set[str]() for _ in shapes]
        self.cuts = set[Piece]()
        self.glued = set[Piece]()
        self.effects = defaultdict[tuple[int, ...], set[str]](set)
        self.applied = set[int]()

    def note(self, word: str, pieces: Iterable[Piece]) -> None:
        """Notes what happens along the axes of these pieces."""
        for piece in pieces:
            self.axes[piece.leaf][word].add(piece.axis)

    def mark(self, values: Iterable[Value], word: str) -> None:
        """Notes what happens to the parameters that these values are computed from."""
        for leaf in _parameters(values):
            self.axes[leaf][word].add(-1)

    def lose(self, values: Iterable[Value], reason: str) -> None:
        """Notes why the parameters that these values are computed from cannot be followed."""
        for leaf in _parameters(values):
            self.lost[leaf].add(reason)

    def choose(self, value: Value, axes: Sequence[int]) -> None:
        """Notes that outputs along these dimensions are alternatives."""
        self.note("alternatives", self.outputs(value, axes))

    def outputs(self, value: Value, axes: Sequence[int], *without: str) -> list[Piece]:
        """Lists outputs along some dimensions, without batch axes and axes with these words."""
        words, pieces = ("batch", *without), value.pieces(axes, out=True)
        return [p for p in pieces if all(p.axis not in self.axes[p.leaf][word] for word in words)]

    def use(self, weights: Value, roles: Sequence[Sequence[int]], **how: Any) -> None:
        """Notes a contraction; data count as weights if they have both rows and columns.

        Args:
          weights: one operand of the contraction.
          roles: its dimensions that are summed over, produced and repeated.
          how: further fields of `Use`.
        """
        for view in weights.only(out=False).each():
            for leaf in {piece.leaf for piece in view.pieces(out=False)}:
                rows, cols, batch = (
                    frozenset(p.axis for p in view.pieces(dims, out=False) if p.leaf == leaf)
                    for dims in roles
                )
                if weights.kind is PARAM or (rows and cols):
                    self.uses[leaf].append(Use(rows, cols, batch, **how))
                    self.axes[leaf]["batch"] |= batch


def _parameters(values: Iterable[Value]) -> set[int]:
    return {leaf for value in values if value.kind is PARAM for leaf in value.sources}
