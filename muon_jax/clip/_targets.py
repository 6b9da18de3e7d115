"""Which parameters make the queries and the keys of an attention layer, under which view."""

import numbers
from dataclasses import dataclass, fields

from muon_jax._checks import invalid, named
from muon_jax.views._matrix_axes import MatrixAxes


@dataclass(frozen=True, repr=False)
class QKPart:
    """Names a kernel that makes queries or keys, and how they lie in it.

    The columns of the view are the outputs: one head after another, all heads of one width. Axes
    that are neither rows nor columns count the layers that a scan stacks. Where the kernel also
    makes something else, a split of the columns cuts it, and `part` says which part this is.

    Args:
      path: below the layer, of a kernel or of the module that holds the kernel. The bias of a
        kernel goes with it.
      axes: view of the kernel as it is stored. None takes the view that `matrix_axes` infers from
        names and shapes.
      part: index of the part of `axes.split`, from 0.

    Raises:
      TypeError: `axes` is no `MatrixAxes`.
      ValueError: `axes` splits rows, or `part` is no index.

    Examples:
      >>> from muon_jax import MatrixAxes, QKPart, Split
      >>> torch = QKPart("q_proj", MatrixAxes(rows=1, cols=0))  # (heads·64, inputs)
      >>> key = QKPart("qkv", MatrixAxes(0, 1, split=3), part=1)  # (inputs, 3·heads·64)
      >>> by_head = MatrixAxes(0, (1, 2), Split((128, 64), interleaved=True))
      >>> content, rotary = (QKPart("q_up", by_head, part=i) for i in (0, 1))  # (…, heads, 192)
    """

    path: str
    axes: MatrixAxes | None = None
    part: int = 0

    @named("QKPart", inside=True)
    def __post_init__(self) -> None:
        axes, part = self.axes, self.part
        if not (axes is None or isinstance(axes, MatrixAxes)):
            remedy = "give a view, such as MatrixAxes(rows=-3, cols=(-2, -1)), or None"
            raise invalid("axes", axes, remedy, TypeError)
        if axes and axes.split and axes.split.of == "rows":
            raise invalid("axes", axes, "split the columns, which hold the heads")
        if isinstance(part, bool) or not isinstance(part, numbers.Integral) or part < 0:
            raise invalid("part", part, "give the index of a part of the split, from 0")

    def __repr__(self) -> str:
        axes = f", {self.axes!r}" if self.axes else ""
        return f"QKPart({self.path!r}{axes}{f', part={self.part}' if self.part else ''})"


@dataclass(frozen=True, kw_only=True, repr=False)
class QKTarget:
    """Says which parameters of an attention layer make its queries and keys.

    A head whose largest logit S exceeds τ takes these factors, and so do the biases:

    - `query` and `key`, where every head has a key of its own: √(τ/S) each;
    - `query`, where heads share their keys, or meet a `shared_key` without `rotary_query`: τ/S;
    - `key` with fewer heads than `query` (GQA, MQA), or beside such a `shared_key`: none;
    - `rotary_query`, which meets `shared_key` (MLA): τ/S;
    - `shared_key`, which has no heads (MQA, MLA): none.

    A path stands for `QKPart(path)`.

    Args:
      query: makes the queries.
      key: makes the keys that `query` meets.
      rotary_query: makes the part of the queries that meets `shared_key` beside `key`.
      shared_key: makes the one key of all heads.

    Raises:
      TypeError: an argument is neither a path nor a `QKPart`.
      ValueError: both keys are missing.

    Examples:
      >>> from muon_jax import QKTarget
      >>> latent_attention = QKTarget(
      ...     query="q_content", key="k_content", rotary_query="q_rotary", shared_key="k_rotary"
      ... )
    """

    query: str | QKPart
    key: str | QKPart | None = None
    rotary_query: str | QKPart | None = None
    shared_key: str | QKPart | None = None

    @named("QKTarget", inside=True)
    def __post_init__(self) -> None:
        for role in (field.name for field in fields(self)):
            part = getattr(self, role)
            if not isinstance(part, str | QKPart) and (role == "query" or part is not None):
                raise invalid(role, part, "give a path or a QKPart", TypeError)
        if self.key is None and self.shared_key is None:
            remedy = "give what the query meets: key, shared_key or both"
            raise invalid("key", None, remedy)

    def __repr__(self) -> str:
        return f"QKTarget({', '.join(f'{role}={part}' for role, part in self.parts().items())})"

    def parts(self) -> dict[str, QKPart]:
        """Returns the parts that are given, by role."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            role: QKPart(part) if isinstance(part, str) else part
            for role, part in given.items()
            if part is not None
        }
