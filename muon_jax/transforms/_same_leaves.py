"""Whether a state fits the parameters that it comes back to."""

import re
from typing import Any

import numpy as np
import optax

from muon_jax._checks import listed, refused
from muon_jax.trees._paths import named_leaves

_NESTING = re.compile(r"(?:^|/)inner_states?(?=/|$)")
"""Names in the path of a state that only say that Optax masks and parts trees."""


def check_same_leaves(found: Any, expected: Any, *, call: str) -> None:
    """Refuses a state that was made under other rules, or for a model of other widths.

    Args:
      found: a state, or the momentum in one; parameters that it leaves out are
        `optax.MaskedNode`.
      expected: what it would be, or have the shapes of, if it were made now.
      call: the call that is named.

    Raises:
      ValueError: names the paths that only one tree has, and those whose shapes differ.
    """
    old, new = _shapes(found), _shapes(expected)
    differing = [
        f"'{path}' has {old.get(path, 'nothing')} in the state and {new.get(path, 'nothing')} now"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    ]
    if differing:
        raise refused(
            call,
            f"the state does not fit the parameters, rules and schedules: {listed(differing, 4)}",
            "Restore those that it was made with, or make a new state with `init`",
        )


def _shapes(tree: Any) -> dict[str, str]:
    """Writes the shape of every array and the place of every state without arrays, by path."""
    leaves = named_leaves(tree, is_leaf=lambda node: isinstance(node, optax.EmptyState))
    return {
        _NESTING.sub("", path).lstrip("/"): "no array"
        if isinstance(leaf, optax.EmptyState)
        else f"shape {np.shape(leaf)}"
        for path, leaf in leaves
    }
