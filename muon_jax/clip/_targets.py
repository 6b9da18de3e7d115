"""Which parameters make the queries and the keys of an attention layer, and along which axes."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

from muon_jax import _checks
from muon_jax.views._matrix_axes import Shape

_ROLES = ("query", "key", "rotary_query", "shared_key")


@dataclass(frozen=True)
class QKPart:
    """Says where the heads of a query or key projection lie in its parameters.

    Axes are those of the parameter as it is stored. Counted from the end, they hold for a kernel
    and its bias alike. Where a projection shares its parameter with others, or its heads share an
    axis with their width, two steps lead to it: `fused` takes an axis apart, then `stretch` cuts
    out what belongs to the part.

    Args:
      path: below the layer, of a parameter, or of a module and thereby of all its parameters.
      head_axis: the axis that counts heads, after `fused`.
      fused: (axis, shape) reads one axis as several.
      stretch: (axis, start, stop) takes only that stretch of an axis, after `fused`.

    Examples:
      >>> flat = QKPart("qkv", fused=(-1, (3, 8, 64)), stretch=(-3, 0, 1))  # (inputs, 3·8·64)
      >>> torch = QKPart("q_proj", fused=(0, (8, 64)), head_axis=0)  # (8·64, inputs)
      >>> latent = QKPart("q_up", stretch=(-1, 0, 128))  # (rank, heads, 128 + 64)
    """

    path: str
    head_axis: int = -2
    fused: tuple[int, Shape] | None = None
    stretch: tuple[int, int, int] | None = None

    @_checks.named("QKPart", inside=True)
    def __post_init__(self) -> None:
        if not _whole(self.head_axis):
            remedy = "give the number of the axis that counts heads"
            raise _checks.invalid("head_axis", self.head_axis, remedy, TypeError)
        if not (self.fused is None or _is_fused(self.fused)):
            remedy = "give (axis, shape), such as (-1, (heads, head_dim))"
            raise _checks.invalid("fused", self.fused, remedy)
        if not (self.stretch is None or _is_stretch(self.stretch)):
            remedy = "give (axis, start, stop), such as (-1, 0, head_dim)"
            raise _checks.invalid("stretch", self.stretch, remedy)

    def viewed(self, shape: Shape) -> Shape:
        """Returns the shape in which `head_axis` and `stretch` count."""
        if self.fused is None:
            return shape
        axis, inner = self.fused
        axis %= len(shape)
        return (*shape[:axis], *inner, *shape[axis + 1 :])

    def viewed_axis(self, axis: int, shape: Shape) -> int:
        """Returns where an axis of the parameter, counted from the front, lies in the view."""
        if self.fused is None or axis <= self.fused[0] % len(shape):
            return axis
        return axis + len(self.fused[1]) - 1

    def fits(self, shape: Shape) -> bool:
        """Says whether a parameter of this shape has these axes."""
        if self.fused is not None:
            axis, inner = self.fused
            if not (_in_range(axis, shape) and math.prod(inner) == shape[axis]):
                return False
        viewed = self.viewed(shape)
        if self.stretch is not None:
            axis, start, stop = self.stretch
            if not (_in_range(axis, viewed) and 0 <= start < stop <= viewed[axis]):
                return False
        return _in_range(self.head_axis, viewed)

    def heads(self, shape: Shape) -> int:
        """Counts the heads in a parameter of this shape."""
        viewed = self.viewed(shape)
        if self.stretch is not None:
            axis, start, stop = self.stretch
            if axis % len(viewed) == self.head_axis % len(viewed):
                return stop - start
        return viewed[self.head_axis]


@dataclass(frozen=True, kw_only=True)
class QKTarget:
    """Says which parameters of an attention layer make its queries and keys.

    A head whose largest logit S exceeds τ takes these factors, and so do the biases:

    - `query` and `key`, where every head has a key of its own: √(τ/S) each;
    - `query`, where heads share their keys, or meet a `shared_key` without `rotary_query`: τ/S;
    - `key` with fewer heads than `query` (GQA, MQA), or beside such a `shared_key`: none;
    - `rotary_query`, which meets `shared_key` (MLA): τ/S;
    - `shared_key`, which has no axis of heads (MQA, MLA): none.

    A path stands for `QKPart(path)`: heads are counted by the last axis but one, as in Flax.

    Args:
      query: makes the queries.
      key: makes the keys that `query` meets.
      rotary_query: makes the part of the queries that meets `shared_key` beside `key`.
      shared_key: makes the one key of all heads.
      layer_axis: counts the layers that a scan stacked in these parameters, from the front; None
        for one layer.

    Examples:
      >>> latent_attention = QKTarget(
      ...     query="q_content", key="k_content", rotary_query="q_rotary", shared_key="k_rotary"
      ... )
    """

    query: str | QKPart
    key: str | QKPart | None = None
    rotary_query: str | QKPart | None = None
    shared_key: str | QKPart | None = None
    layer_axis: int | None = None

    @_checks.named("QKTarget", inside=True)
    def __post_init__(self) -> None:
        for role in _ROLES:
            part = getattr(self, role)
            if not isinstance(part, str | QKPart) and (role == "query" or part is not None):
                raise _checks.invalid(role, part, "give a path or a QKPart", TypeError)
        if self.key is None and self.shared_key is None:
            raise _checks.invalid("key", None, "give what the query meets: key, shared_key or both")
        if self.layer_axis is not None and self.layer_axis < 0:
            raise _checks.invalid(
                "layer_axis", self.layer_axis, "count the axis from the front, from 0"
            )

    def parts(self) -> dict[str, QKPart]:
        """Returns the parts that are given, by role."""
        given = {role: getattr(self, role) for role in _ROLES}
        return {
            role: QKPart(part) if isinstance(part, str) else part
            for role, part in given.items()
            if part is not None
        }


def _whole(*values: Any) -> bool:
    return all(isinstance(x, numbers.Integral) and not isinstance(x, bool) for x in values)


def _is_fused(value: Any) -> bool:
    match value:
        case (axis, (_, *_) as shape):
            return _whole(axis, *shape) and min(shape) > 0
    return False


def _is_stretch(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 3 and _whole(*value)


def _in_range(axis: int, shape: Shape) -> bool:
    return -len(shape) <= axis < len(shape)
