"""What a preconditioner does: it divides the momentum before orthogonalisation."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Int

from muon_jax.mesh._owned import Owners
from muon_jax.views._matrix_axes import MatrixAxes


class Viewed(NamedTuple):
    """The leaves of a tree that are matrices, in order.

    Attributes:
      paths: their paths.
      views: how each is a batch of matrices for the preconditioner.
      owners: the devices that own the matrices; None if there is one, or XLA decides.
    """

    paths: tuple[str, ...]
    views: tuple[MatrixAxes, ...]
    owners: Owners | None


@runtime_checkable
class Preconditioner(Protocol):
    """Divides the directions of all leaves by statistics of earlier gradients.

    Attributes:
      keeps: what the state is: `"arrays"`, a list of one array like each leaf; `"entries"`, a list
        of one tree for each leaf; or `"stacks"`, a tree of its own.
    """

    @property
    def keeps(self) -> Literal["arrays", "entries", "stacks"]: ...

    def init(self, leaves: Sequence[Array], viewed: Viewed) -> Any:
        """Returns the state."""
        ...

    def apply(
        self,
        directions: Sequence[Array],
        gradients: Sequence[Array],
        state: Any,
        count: Int[Array, ""],
        viewed: Viewed,
    ) -> tuple[list[Array], Any]:
        """Returns the new directions, in the shapes of the old ones, and the new state."""
        ...
