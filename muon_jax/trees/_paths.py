"""Leaves by path, without the wrappers that libraries put around arrays."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import jax
import optax
from jax.tree_util import DictKey, GetAttrKey

from muon_jax._checks import path_name, refused


def _placeholder(params: Any) -> Any:
    """Records the type of Optax's placeholder, which has no public name."""
    _PLACEHOLDERS.append(type(params))
    return ()


_PLACEHOLDERS = list[type]()
optax.tree_map_params(_placeholder, lambda leaf: leaf, ())

_BOXES = (GetAttrKey("value"), GetAttrKey("array"), DictKey("value"))  # Flax, Haliax, Orbax


def chosen_by_leaf(
    argument: str,
    choice: Any,
    tree: Any,
    *,
    remedy: str,
    is_leaf: Callable[[Any], bool] | None = None,
) -> list[Any]:
    """Returns the user's choice for every leaf of a tree, in order.

    Args:
      argument: its argument, for messages.
      choice: a prefix tree, a function from the tree to one, or a tree with the same paths. Flax
        NNX initialises an optimizer with wrapped arrays, and updates without wrappers.
      tree: the tree; masks may hide leaves.
      remedy: for messages.
      is_leaf: whether a node of `choice` is a leaf, for instance None.
    """
    choice = choice(tree) if _is_function(choice) else choice
    chosen: list[Any] = []
    try:
        jax.tree.map(
            lambda each, below: chosen.extend([each] * len(jax.tree.leaves(below))),
            choice,
            tree,
            is_leaf=is_leaf,
        )
    except ValueError as error:
        by_path = dict(named_leaves(choice, is_leaf))
        paths = [path for path, _ in named_leaves(tree)]
        if not set(paths) <= by_path.keys() <= {*paths, *masked_paths(tree)}:
            said = str(error).splitlines()[0].rstrip(".")
            raise refused(f"{argument} is no prefix of the parameters: {said}", remedy) from error
        return [by_path[path] for path in paths]
    return chosen


def masked_paths(params: Any) -> list[str]:
    """Lists the paths that `optax.masked` or `optax.multi_transform` hides."""
    return [path for path, node in named_nodes(params) if is_masked(node)]


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Lists the leaves in order, each with its path without wrappers."""
    return [(path, node) for path, node in named_nodes(tree, is_leaf) if not is_masked(node)]


def map_named(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Maps a function of paths, as in `named_leaves`, and leaves over trees of one structure."""
    structure = jax.tree.structure(tree)
    paths = structure.unflatten(path for path, _ in named_leaves(tree))
    return jax.tree.map(function, paths, tree, *others)


def named_nodes(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Lists the leaves and the masked nodes, each with its path.

    Some libraries wrap an array in a node with a single child named as in `_BOXES` (Flax calls such
    nodes boxes). With more children it is an ordinary node.
    """
    nodes = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: is_masked(node) or bool(is_leaf and is_leaf(node))
    )
    may_be_boxed = {path[:-1] for path, _ in nodes if path and path[-1] in _BOXES}
    below = Counter(path[:depth] for path, _ in nodes for depth in range(len(path)) if may_be_boxed)
    boxes = {place for place in may_be_boxed if below[place] == 1}
    return [
        (path_name(path[:-1] if path[:-1] in boxes and path[-1] in _BOXES else path), node)
        for path, node in nodes
    ]


def owner_of(path: str, params: Collection[str]) -> str | None:
    """Returns the longest parameter path in the path of a leaf of a state, nearest its end.

    Names below it are those of a state with several arrays for a parameter.
    """
    names = path.split("/")
    stops = range(len(names), 0, -1)
    parts = ("/".join(names[start:stop]) for stop in stops for start in range(stop))
    return next((part for part in parts if part in params), None)


def kind_of_path(path: str) -> str:
    """Returns a path with `#` for numbers, so that it is one for layers of one kind."""
    return re.sub(r"\d+", "#", path)


def is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def is_placeholder(params: Any) -> bool:
    """Returns whether `optax.tree_map_params` called `init`, with its placeholder.

    `init` must then return a state with the placeholder instead of each copy of the parameters.
    """
    return type(params) in _PLACEHOLDERS


def _is_function(value: Any) -> bool:
    """Returns whether a value is a function, and not a pytree with a callable class."""
    partial = isinstance(value, jax.tree_util.Partial)  # a pytree, but a function
    return callable(value) and (partial or jax.tree_util.all_leaves([value]))
