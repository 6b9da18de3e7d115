"""The result of `trace_axes`, and rules made from it or from any other tree of views."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from muon_jax._checks import named, refused
from muon_jax.routing._context import Leaf
from muon_jax.routing._rule import FALLBACK, Rule
from muon_jax.trees._paths import chosen_by_leaf, named_leaves
from muon_jax.views._matrix_axes import MatrixAxes, Shape

AMBIGUOUS = "ambiguous"
"""The rule of a parameter whose view neither the loss nor the name decides."""

AXES_REMEDY = "Give a MatrixAxes or None for every leaf, as muon_jax.matrix_axes(params) does"


@dataclasses.dataclass(frozen=True)
class TracedLeaf:
    """The route that `trace_axes` found for one parameter.

    Attributes:
      path: the names down to it, joined by `/`.
      shape: as stored.
      axes: the view as matrices; None if Muon does not train it.
      rule: the role that the loss shows, such as `matrix` or `lookup table`; else the rule by name
        that decided; `ambiguous` if neither decides.
      why: the reason.
      read: whether the route comes from the loss.
    """

    path: str
    shape: Shape
    axes: MatrixAxes | None
    rule: str
    why: str
    read: bool


@dataclasses.dataclass(frozen=True)
class TracedAxes:
    """Views of all parameters with their reasons: the result of `trace_axes`.

    Give it as `axes` to `muon`, `scale_by_muon`, `explain` or `label_params`; it fits every tree
    with the same paths and shapes, also a masked part of the one that was traced. Print it to see
    a line for every parameter.

    Attributes:
      leaves: one entry a parameter, in the order of the tree.
      structure: of the tree that was traced.
    """

    leaves: tuple[TracedLeaf, ...]
    structure: Any = dataclasses.field(repr=False)

    @property
    def axes(self) -> Any:
        """The views, a `MatrixAxes` or None for every parameter, as `matrix_axes` returns them."""
        return self.structure.unflatten([leaf.axes for leaf in self.leaves])

    @property
    def reasons(self) -> Any:
        """The same tree with the reason for each."""
        return self.structure.unflatten([leaf.why for leaf in self.leaves])

    def __str__(self) -> str:
        rows = [(leaf.path, str(leaf.shape), _shown(leaf), leaf.why) for leaf in self.leaves]
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
        return "\n".join("  ".join(map(str.ljust, row, [*widths, 0])).rstrip() for row in rows)

    @named("TracedAxes.rules")
    def rules(self, params: Any) -> tuple[Rule, ...]:
        """Returns one rule for each reason, which gives parameters the traced routes.

        Ambiguous parameters are left to the next rules.

        Raises:
          ValueError: a parameter was not traced, or not with this shape.
        """
        known = {leaf.path: leaf for leaf in self.leaves}
        for path, array in named_leaves(params):
            found = known.get(path)
            if found is None or found.shape != np.shape(array):
                was = f"was traced as {found.shape}" if found else "is not among those traced"
                raise refused(
                    f"'{path}' of shape {np.shape(array)} {was}",
                    "Call trace_axes(loss, params, *args) with the parameters to be trained",
                )
        grouped: dict[tuple[str, str], dict[str, MatrixAxes | str]] = {}
        for leaf in self.leaves:
            if leaf.rule != AMBIGUOUS:
                group = grouped.setdefault((leaf.rule, leaf.why), {})
                group[leaf.path] = leaf.axes or FALLBACK
        return tuple(
            Rule("*", _chosen(outcomes), why, name) for (name, why), outcomes in grouped.items()
        )


AxesLike: TypeAlias = MatrixAxes | TracedAxes | Any | Callable[[Any], Any] | None
"""A view for every leaf, a prefix tree of views, a function from the tree to such a tree, what
`trace_axes` returns, or None.

In a prefix tree None leaves a leaf alone; None for the whole means the rules of `matrix_axes`.
"""


def axes_as_rules(axes: AxesLike, params: Any) -> tuple[Rule, ...]:
    """Returns rules that give these parameters the user's axes.

    Raises:
      TypeError or ValueError: the axes do not fit the parameters.
    """
    if axes is None:
        return ()
    if isinstance(axes, TracedAxes):
        return axes.rules(params)
    views = views_by_leaf(axes, params)
    outcomes = {
        path: view or FALLBACK for (path, _), view in zip(named_leaves(params), views, strict=True)
    }
    return (Rule("*", _chosen(outcomes), "as given by axes", "axes"),)


def views_by_leaf(axes: AxesLike, params: Any) -> list[MatrixAxes | None]:
    """Lists the view of every leaf, unchecked against its shape."""
    views = chosen_by_leaf("axes", axes, params, remedy=AXES_REMEDY, is_leaf=_is_view)
    if others := [view for view in views if not _is_view(view)]:
        raise refused(f"axes holds {others[0]!r}", AXES_REMEDY, TypeError)
    return views


def _is_view(node: Any) -> bool:
    return node is None or isinstance(node, MatrixAxes)


def _chosen(outcomes: Mapping[str, MatrixAxes | str]) -> Callable[[Leaf], MatrixAxes | str | None]:
    return lambda leaf: outcomes.get(leaf.path)


def _shown(leaf: TracedLeaf) -> str:
    return f"{leaf.axes!r}" if leaf.axes else leaf.rule
