"""Preconditioners by name.

The polar factor gives all singular directions of the momentum the same weight, noise included. A
preconditioner divides by the root mean square of many gradients, so that directions in which large
gradients change sign get less weight than directions in which they agree.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from muon_jax import _checks
from muon_jax.mesh._distribution import Distribute
from muon_jax.mesh._owned import owners_of
from muon_jax.mesh._specs import manual_axes
from muon_jax.transforms._same_leaves import mirrored
from muon_jax.transforms.precondition._preconditioner import Preconditioner, Viewed
from muon_jax.transforms.precondition._second_moment import SecondMoment
from muon_jax.transforms.precondition._soap import Soap
from muon_jax.trees._paths import named_leaves
from muon_jax.views._matrix_axes import MatrixAxes, viewed

Views: TypeAlias = Sequence[MatrixAxes | None]

PreconditionerLike: TypeAlias = Literal["second_moment", "soap"] | Preconditioner | None
"""The name of a preconditioner, or any object with its methods."""

_NAMED = MappingProxyType({"second_moment": SecondMoment(), "soap": Soap()})


@dataclasses.dataclass(frozen=True)
class TreePreconditioner:
    """Applies a preconditioner to the leaves of a tree that have a view.

    Attributes:
      by: the preconditioner.
      distribute: which device owns which matrix, as for `scale_by_muon`.
    """

    by: Preconditioner
    distribute: Distribute

    def placeholder(self, params: Any) -> Any:
        """Returns a state for `optax.tree_map_params`."""
        return params if self.by.keeps == "arrays" else jnp.zeros([])

    def init(self, params: Any, views: Views) -> Any:
        views = _of_nonempty(params, views)
        state = self.by.init(
            viewed(jax.tree.leaves(params), views), self._viewed(params, views, params)
        )
        return state if self.by.keeps == "stacks" else _in_tree(params, views, state)

    def apply(
        self,
        directions: Sequence[Array],
        gradients: Any,
        state: Any,
        count: Int[Array, ""],
        views: Views,
        like: Any,
    ) -> tuple[list[Array], Any]:
        """Divides the directions, which are the leaves of a tree like the gradients."""
        leaves, treedef = jax.tree.flatten(gradients)
        views = _of_nonempty(gradients, views)
        in_stacks = self.by.keeps == "stacks"
        old = state if in_stacks else viewed(treedef.flatten_up_to(state), views)
        divided, new = self.by.apply(
            viewed(directions, views),
            viewed(leaves, views),
            old,
            count,
            self._viewed(gradients, views, like),
        )
        if not in_stacks:
            new = _in_tree(gradients, views, new)
        divided = iter(divided)
        return [
            direction if view is None else next(divided)
            for direction, view in zip(directions, views, strict=True)
        ], new

    def _viewed(self, tree: Any, views: Views, like: Any) -> Viewed:
        paths = [path for path, _ in named_leaves(tree)]
        has_owners = self.by.keeps == "stacks" and not manual_axes()
        return Viewed(
            tuple(viewed(paths, views)),
            tuple(view.whole or view for view in views if view is not None),
            owners_of(tree, views, self.distribute, like) if has_owners else None,
        )


def tree_preconditioner(given: Any, distribute: Distribute) -> TreePreconditioner | None:
    """Resolves the argument `precondition` of a public call."""
    if isinstance(given, str):
        _checks.check_choice("precondition", given, tuple(_NAMED))
        given = _NAMED[given]
    if not isinstance(given, Preconditioner | None):
        remedy = "give 'second_moment', 'soap', a SecondMoment, a Soap, or None"
        raise _checks.invalid("precondition", given, remedy, TypeError)
    return None if given is None else TreePreconditioner(given, distribute)


def _in_tree(tree: Any, views: Views, entries: Iterable[Any]) -> Any:
    """Puts the entry of every leaf that has a view in its place."""
    rest = iter(entries)
    return mirrored(tree, views, lambda leaf, view: next(rest))


def _of_nonempty(tree: Any, views: Views) -> Views:
    return [
        view if jnp.size(leaf) else None
        for leaf, view in zip(jax.tree.leaves(tree), views, strict=True)
    ]
