"""Checks that gradients, parameters and state have one structure."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array

from muon_jax._checks import listed, refused
from muon_jax.trees._paths import named_leaves, named_nodes, owner_of
from muon_jax.views._matrix_axes import MatrixAxes

_NESTING = re.compile(r"(?:^|/)inner_states?(?=/|$)")
"""Names in the path of a state that come from `optax.masked` and `optax.multi_transform`."""


def check_same_leaves(found: Any, expected: Any) -> None:
    """Raises for a state that was made with other rules, or for a model of other widths.

    Args:
      found: a state, or its momentum; parameters without state are `optax.MaskedNode`.
      expected: what `init` would return now, or its shapes.

    Raises:
      ValueError: lists the paths that only one tree has, and those whose shapes differ.
    """
    old, new = _shapes(found), _shapes(expected)
    differing = [
        f"'{path}' has {old.get(path, 'nothing')} in the state and {new.get(path, 'nothing')} now"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    ]
    if not differing:
        try:
            jax.tree.map(lambda new, old: None, expected, found)
        except ValueError:
            differing = [_difference(found, expected, ("the state", "now")) or "containers"]
    if differing:
        raise refused(
            f"the state does not fit the parameters, rules and schedules: {listed(differing, 4)}",
            "Restore those that made the state, or make a new state with `init`",
        )


def params_beside(updates: Any, params: Any) -> Any:
    """Returns the parameters that have a gradient, in the structure of the gradients.

    Params may be a whole Equinox model, whose other leaves have None as a gradient.

    Raises:
      ValueError: the structures differ; names the first difference.
    """
    if params is None:
        return None
    try:
        return jax.tree.map(
            lambda gradient, param: None if gradient is None else param,
            updates,
            params,
            is_leaf=_is_none,
        )
    except ValueError as error:
        problem = _difference(updates, params, ("the gradients", "the parameters"))
        raise refused(
            f"gradients and parameters differ: {problem or str(error).splitlines()[0]}",
            "Pass update(gradients, state, params) two trees of the same containers and keys",
        ) from error


def check_gradients(updates: Any, state: Any) -> None:
    """Raises ValueError if a gradient is None and the state has an array for it."""
    nodes = dict(named_nodes(updates, _is_none))
    if all(node is not None for node in nodes.values()):
        return
    kept = {owner_of(path, nodes) for path, _ in named_leaves(state)}
    if lost := [path for path, node in nodes.items() if node is None and path in kept]:
        raise refused(
            f"the gradient of {listed(map(repr, lost))} is None, but the state holds an array for "
            "it",
            "Pass zeros for a parameter without a gradient, or leave it out of `init` as well",
        )


def _is_none(node: Any) -> bool:
    return node is None


def _difference(one: Any, other: Any, names: tuple[str, str], path: str = "") -> str | None:
    """Describes the first node at which two trees differ; leaves may be any arrays."""
    is_leaf = [jax.tree_util.all_leaves([tree]) for tree in (one, other)]
    if all(is_leaf):
        return None
    where = f"at {path} " if path else ""
    if type(one) is not type(other):
        return f"{where}{names[0]} a {type(one).__name__}, {names[1]} a {type(other).__name__}"
    below, beside = _children(one), _children(other)
    if below.keys() != beside.keys():
        kinds = [
            f"{name} {listed(sorted(only)) or 'nothing else'}"
            for name, only in zip(
                names, (below.keys() - beside.keys(), beside.keys() - below.keys()), strict=True
            )
        ]
        return f"{where}only {kinds[0]}, only {kinds[1]}"
    found = (_difference(below[key], beside[key], names, path + key) for key in below)
    return next((each for each in found if each), None)


def _children(node: Any) -> dict[str, Any]:
    """Returns the children of a node, by key."""
    nodes = tree_leaves_with_path(node, is_leaf=lambda each: each is not node)
    return {keystr(path): each for path, each in nodes}


def _shapes(tree: Any) -> dict[str, str]:
    """Returns by path the shape of every array, and "no array" for every empty state."""
    leaves = named_leaves(tree, is_leaf=lambda node: isinstance(node, optax.EmptyState))
    return {
        _NESTING.sub("", path).lstrip("/"): "no array"
        if isinstance(leaf, optax.EmptyState)
        else f"shape {np.shape(leaf)}"
        for path, leaf in leaves
    }


def mirrored(
    tree: Any,
    views: Sequence[MatrixAxes | None],
    make: Callable[[Array, MatrixAxes], Any] = lambda leaf, view: leaf,
) -> Any:
    """Maps a function over the leaves that have a view; the others become `MaskedNode`."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        optax.MaskedNode() if view is None else make(leaf, view)
        for leaf, view in zip(leaves, views, strict=True)
    )
