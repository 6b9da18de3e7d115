"""Lists the parameters of a tree as rules see them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from muon_jax._checks import refused
from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf, Tree
from muon_jax.routing._stacks import stack_axes
from muon_jax.trees._paths import is_masked, named_nodes
from muon_jax.trees._patterns import Words, matches, split_path
from muon_jax.views._matrix_axes import Shape

_PARAMETER = f"{vocabulary.WEIGHT},embedding,embeddings,scale,bias,b,gamma,beta,offset"


def leaves_of(params: Any) -> tuple[list[Leaf], list[str]]:
    """Returns the leaves of a parameter tree, and the paths that a mask hides.

    Raises:
      ValueError: the tree holds no arrays.
      TypeError: a leaf is no array of real or complex floating-point numbers.
    """
    nodes = named_nodes(params)
    if not nodes:
        raise refused("the tree of parameters has no arrays", "Give the model's parameters")
    leaves, taken = list[Leaf](), set[Words]()
    for path, value in nodes:
        if not is_masked(value):
            _check_array(path, value)
            words, names = _words_and_names(path, len(leaves), taken)
            leaves.append(Leaf(path, tuple(value.shape), value.dtype, words, names))
    tree = Tree(leaves)
    named = _stacks_by_axis_name(params, leaves)
    claimed = stack_axes(tree, {words: 1 for words, axes in named.items() if axes == (0,)})
    for leaf in leaves:
        leaf.stack = named.get(leaf.words, claimed.get(leaf.words, ()))
    return leaves, [path for path, node in nodes if is_masked(node)]


def _words_and_names(path: str, index: int, taken: set[Words]) -> tuple[Words, Words]:
    """Returns words that no earlier leaf has, and the plain names of a path.

    Words below the name of a parameter move to the front, so that the bias and the siblings of
    `up/kernel/real` are found among `up/bias/real` and so on. So does the index of a leaf whose
    path differs from an earlier one only in case, or by a dot against a slash.
    """
    split = [word for word in split_path(path) if word != "parametrizations"] or [path]
    end = len(split)
    while end > 1 and matches(vocabulary.WRAPPER, vocabulary.plain_name(split[end - 1])):
        end -= 1
    if matches(_PARAMETER, vocabulary.plain_name(split[end - 1])):
        split = [*split[end:], *split[:end]]
    words = tuple(word.lower() for word in split)
    if words in taken:
        split, words = [f"#{index}", *split], (f"#{index}", *words)
    taken.add(words)
    return words, tuple(map(vocabulary.plain_name, split))


def _check_array(path: str, value: Any) -> None:
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape") or not jnp.issubdtype(dtype, jnp.inexact):
        what = f"a {type(value).__name__}" if dtype is None else f"of dtype {dtype}"
        functions = "`nnx.state(model, nnx.Param)` or `eqx.filter(model, eqx.is_inexact_array)`"
        problem = f"'{path}' is {what}, not an array of floating-point numbers"
        remedy = f"Give only the arrays that are trained, such as {functions}"
        raise refused(problem, remedy, TypeError)


def _stacks_by_axis_name(params: Any, leaves: Sequence[Leaf]) -> dict[Words, Shape]:
    """Returns the stack axes that the metadata of Flax variables (NNX) or boxes (Linen) name."""
    stacks, index = {}, 0
    for node in jax.tree.leaves(params, is_leaf=lambda node: _axis_names(node) is not None):
        names = [str(name) for name in _axis_names(node) or ()]
        stack = tuple(
            axis for axis, name in enumerate(names) if matches(vocabulary.STACK_AXIS, name)
        )
        if stack and index < len(leaves) and len(names) == len(leaves[index].shape):
            stacks[leaves[index].words] = stack
        index += len(jax.tree.leaves(node))
    return stacks


def _axis_names(node: Any) -> Sequence[Any] | None:
    if hasattr(node, "get_metadata"):
        return node.get_metadata().get("out_sharding")
    return getattr(node, "names", None) if hasattr(node, "unbox") else None
