"""Finds the axes that only repeat a layer: scanned, vmapped and pipelined stacks, experts.

A norm's gain is a vector, so a gain of shape (layers, width) shows a stack. So does every other
parameter with more axes than its name or its bias implies. Such a parameter makes a claim, which
holds for the largest subtree around it in which all shapes start with the same sizes, because these
parameters were stacked together. MaxText stacks along the second axis; the same claims show it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf, Tree
from muon_jax.trees._patterns import Words, matches
from muon_jax.views._matrix_axes import Shape, without_ones

_WITH_HEADS = f"{vocabulary.ATTENTION_INPUT},{vocabulary.LATENT_UP}"
_MATRIX = f"kernel,{vocabulary.DENSE},{_WITH_HEADS},{vocabulary.ATTENTION_OUTPUT}"
_FUSED = {2: vocabulary.FUSED_KEY_VALUE, 3: vocabulary.FUSED_QUERY_KEY_VALUE}

Claim: TypeAlias = tuple[Words, Shape, Words | None]
"""A place in the tree, its stacked leading sizes, and a module (or None); the claim holds only if
parameters outside this module also start with these sizes."""


def stack_axes(tree: Tree, known: Mapping[Words, int]) -> dict[Words, Shape]:
    """Returns the stack axes of every parameter that has any.

    Args:
      tree: all parameters.
      known: how many leading axes are stacked for certain, by the words of a parameter.
    """
    leaves, by_rank = tree.leaves.values(), list(_by_rank(tree))
    claims = [(words, tree.leaves[words].shape[:count], None) for words, count in known.items()]
    claims += [*by_rank, *_by_bias(tree), *_by_container(tree)]
    if not claims:
        return {}
    common = _common_sizes((leaf, _stackable(leaf)) for leaf in leaves)
    found: dict[Words, Shape] = {}
    for place, sizes, beyond in claims:
        for count in range(1, len(sizes) + 1):
            top = _highest(place, sizes[:count], common)
            shared = common[top][:count] == sizes[:count]
            if shared and (beyond is None or _reaches(top, beyond, tree)):
                found[top] = max(found.get(top, ()), tuple(range(count)))
    found |= dict.fromkeys(_second_axis(tree, by_rank), (1,))
    return {
        words: max(axes for top, axes in found.items() if words[: len(top)] == top)
        for words in tree.leaves
        if any(words[: len(top)] == top for top in found)
    }


def _second_axis(tree: Tree, claims: Iterable[Claim]) -> Iterator[Words]:
    """Yields places where a claim's second size covers a larger subtree than its first.

    Every weight there keeps at least two axes.
    """
    first = _common_sizes((leaf, leaf.shape) for leaf in tree.leaves.values())
    arrays = f"{vocabulary.WEIGHT},embedding,embeddings"
    second = _common_sizes(
        (leaf, leaf.shape[1:2] if len(leaf.shape) > 1 + matches(arrays, leaf.names[-1]) else ())
        for leaf in tree.leaves.values()
    )
    for words, sizes, _ in claims:
        top = _highest(words, tree.leaves[words].shape[1:2], second)
        if len(top) < len(_highest(words, sizes[:1], first)):
            yield top


def _by_rank(tree: Tree) -> Iterator[Claim]:
    """Yields parameters with more axes than their name implies, unless the bias explains them.

    A norm over heads shows a stack only if parameters outside this attention start with its sizes;
    a layer with heads, which may be in groups, only if parameters outside this layer do.
    """
    for leaf in tree.leaves.values():
        rank = _rank_by_name(leaf) if len(leaf.shape) > 1 else 0
        bias = leaf.stored_bias
        shared = 1 if rank > 1 else len(leaf.shape)  # a gain has all axes of its bias
        explained = bias and bias.shape[:shared] != leaf.shape[:shared]
        if 0 < rank < len(leaf.shape) and not explained:
            depth = len(_layer_path(leaf))
            of_heads = rank == 1 and any("att" in name for name in leaf.names[: depth - 1])
            module = leaf.words[: depth - of_heads]
            yield leaf.words, leaf.shape[:-rank], module if of_heads or rank == 3 else None


def _layer_path(leaf: Leaf) -> Words:
    return vocabulary.layer_of(leaf.names, f"{vocabulary.WEIGHT},{vocabulary.NORM_VECTOR}")


def _rank_by_name(leaf: Leaf) -> int:
    """Returns how many axes the name of a gain, a matrix or heads implies; 0 if unknown."""
    shape, layer_path, last = leaf.shape, _layer_path(leaf), leaf.names[-1]
    layer = layer_path[-1] if layer_path else ""
    bare = layer_path == leaf.names
    if vocabulary.is_norm(layer) and (bare or matches(vocabulary.NORM_VECTOR, last)):
        return 1
    if len(shape) == 5 and matches(vocabulary.FUSED_QUERY_KEY_VALUE, layer):
        return 4  # (inputs, 3, heads, head_dim)
    is_filter = len(shape) > 3 and (shape[0] == shape[1] or shape[-2] == shape[-1])
    if len(shape) < 3 or is_filter or not (bare or matches(vocabulary.WEIGHT, last)):
        return 0
    attends = any("att" in name for name in leaf.names)
    if matches(_WITH_HEADS, layer) or (attends and matches(vocabulary.ATTENTION_OUTPUT, layer)):
        return 3
    if attends or not matches(vocabulary.DENSE, layer):  # some attention has an axis of heads
        return 0
    return 3 if shape[-2] == 2 else 2  # (inputs, 2, outputs): gate and up fused


def _stackable(leaf: Leaf) -> Shape:
    """Returns the sizes that may be stacked: all but those that a norm or a matrix keeps."""
    is_norm = any(map(vocabulary.is_norm, _layer_path(leaf)[-1:]))
    kept = 1 if is_norm else 2 * matches(_MATRIX, leaf.names[-1])
    return leaf.shape[: max(0, len(leaf.shape) - kept)]


def _by_bias(tree: Tree) -> Iterator[Claim]:
    """Yields weights whose bias has leading axes of the weight besides the output axes."""
    for leaf in tree.leaves.values():
        shape, bias = leaf.shape, leaf.stored_bias.shape if leaf.stored_bias else ()
        if len(shape) < 3 or bias == shape[-len(bias) :]:
            continue
        for lead in range(len(bias) - 1, 0, -1):
            outputs, layer = without_ones(bias[lead:]), shape[lead:]
            parts = ",".join(_FUSED[size] for size in bias[:lead] if size in _FUSED)
            is_part = matches(f"*/{{{parts}}}", "/".join(leaf.layer_path[-2:]))
            ends = layer[: len(outputs)], layer[-len(outputs) :]
            fits = 0 < len(outputs) < len(layer) and outputs in ends
            if bias[:lead] == shape[:lead] and fits and not is_part:
                yield leaf.words, bias[:lead], None
                break


def _by_container(tree: Tree) -> Iterator[Claim]:
    """Yields modules such as `layers` that have no numbered children but three-axis weights."""
    for leaf in tree.leaves.values():
        if len(leaf.shape) == 3 and not any("conv" in word for word in leaf.words):
            for depth, name in enumerate(leaf.names[:-1], start=1):
                if matches(vocabulary.STACK_CONTAINER, name) and leaf.names[depth] != "0":
                    yield leaf.words[:depth], leaf.shape[:1], None


def _common_sizes(shapes: Iterable[tuple[Leaf, Shape]]) -> dict[Words, Shape]:
    """Returns the leading sizes that all shapes below a place share, for every place."""
    common: dict[Words, Shape] = {}
    for leaf, shape in shapes:
        for depth in range(len(leaf.words), -1, -1):
            place = leaf.words[:depth]
            known = common.get(place, shape)
            count = 0
            while known[count : count + 1] == shape[count : count + 1] != ():
                count += 1
            if common.get(place) == known[:count]:
                break
            common[place] = known[:count]
    return common


def _highest(place: Words, sizes: Shape, common: Mapping[Words, Shape]) -> Words:
    """Returns the highest ancestor below which all shapes start with these sizes."""
    while place and common[place[:-1]][: len(sizes)] == sizes:
        place = place[:-1]
    return place


def _reaches(top: Words, beyond: Words, tree: Tree) -> bool:
    """Returns whether anything below `top` lies outside `beyond`."""
    return len(top) < len(beyond) and any(
        words[: len(top)] == top and words[: len(beyond)] != beyond for words in tree.leaves
    )
