"""Finds what is no matrix for Muon, by its name, shape and siblings.

Every function takes a leaf and returns the fallback, or None where the leaf may be a matrix.
"""

from collections.abc import Collection

from muon_jax.routing import _plain as plain
from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf
from muon_jax.routing._plain import in_attention, sides
from muon_jax.routing._rule import FALLBACK, Outcome
from muon_jax.trees._patterns import Words, matches
from muon_jax.views._matrix_axes import MatrixAxes


def no_matrix(leaf: Leaf) -> Outcome:
    """At most one axis is longer than one, or one has no entry."""
    return FALLBACK if 0 in leaf.layer_shape or len(leaf.axes) < 2 else None


def gain(leaf: Leaf) -> Outcome:
    """A bias or a gain, unlike a projection named after a norm, or a bias for its outputs alone."""
    if not matches(vocabulary.NORM, leaf.layer):
        return None if matches("*lora_b", leaf.layer) else FALLBACK
    biased = leaf.bias and len(leaf.bias) < len(leaf.axes)
    return None if biased or not vocabulary.is_norm(leaf.layer) else FALLBACK


def letter_b(leaf: Leaf) -> Outcome:
    """A bias called b, unlike the matrix B of a LoRA or a state space."""
    first, last = leaf.layer_shape[0], leaf.layer_shape[-1]
    if leaf.sibling("a_log,log_a")[:1] == (first,):
        return MatrixAxes(rows=1, cols=0)  # into the state, as the rates A of the state show
    others = [leaf.sibling(name) for name in ("a", "c")]
    chained = any(other and (other[-1] == first or other[0] == last) for other in others)
    return None if chained or any("lora" in name for name in leaf.names) else FALLBACK


def broadcast(leaf: Leaf) -> Outcome:
    """An array that is no weight and starts with an axis of one is broadcast to activations."""
    is_weight = matches("*kernel,*weight,*weights,w,w?,w_*", leaf.names[-1])
    return FALLBACK if leaf.layer_shape[0] == 1 and not is_weight else None


def table(leaf: Leaf) -> Outcome:
    """Looked up, or a state, unlike a layer with a bias, a key beside it, or filters of patches."""
    of_layer = matches("weight,w", leaf.names[-1])
    has_partner = leaf.bias or leaf.sibling("{,w_,to_}{key,keys}")
    of_patches = any("patch" in name for name in leaf.layer_path[-2 if leaf.layer == "0" else -1 :])
    is_kernel = leaf.names[-1] == "kernel" or matches(vocabulary.PROJECTION, leaf.layer)
    is_map = (of_layer and has_partner) or len(leaf.axes) > 3 or of_patches or is_kernel
    return None if is_map else FALLBACK


def gate_of_experts(leaf: Leaf) -> Outcome:
    """Experts stand beside it, by name or as stacks of as many matrices as it has outputs."""
    if len(leaf.layer_shape) != 2 or leaf.sibling(vocabulary.ATTENTION_INPUT):
        return None
    children = leaf.tree.children[leaf.parent].keys() - {leaf.words[len(leaf.parent)]}
    named = any(matches(vocabulary.EXPERTS, name) for name in children)
    stacks = [shape[0] for shape in leaf.siblings.values() if len(shape) == 3]
    return FALLBACK if named or sides(leaf)[1] in stacks else None


def choice_of_codes(leaf: Leaf) -> Outcome:
    """A codebook beside it has as many entries as it has outputs."""
    codes = leaf.sibling("code*,*codebook*,*codevectors")
    return FALLBACK if len(leaf.axes) == 2 and sides(leaf)[1] in codes[:-1] else None


def single_channel(leaf: Leaf) -> Outcome:
    """Every filter sees one channel: depthwise, or the first layer on gray images."""
    shape = leaf.layer_shape
    one_head = len(shape) == 3 and matches(vocabulary.ATTENTION_INPUT, leaf.layer)
    fits = len(shape) > 2 and not one_head and shape[1 if plain.space_is_last(leaf) else -2] == 1
    return FALLBACK if fits else None


def taps_by_channel(leaf: Leaf) -> Outcome:
    """(taps, channels), in layers that are otherwise a convolution over time."""
    return FALLBACK if len(leaf.layer_shape) == 2 else None


def logits(leaf: Leaf) -> Outcome:
    """A layer named like an output head, unless it feeds something."""
    feeds = matches("multi_head,*att*", leaf.layer) or _comes_before(leaf)
    return None if feeds or _feeds_other_tower(leaf) else FALLBACK


def end_of_head(leaf: Leaf) -> Outcome:
    """The last layer of a head; of a module named after a head, if nothing else is as wide."""
    is_matrix = len(leaf.layer_shape) == 2
    several = matches("0,layers", leaf.layer) and (not is_matrix or "heads" in leaf.layer_path)
    if several or in_attention(leaf) or _comes_before(leaf) or (is_matrix and _feeds(leaf)):
        return None
    in_head = any(matches(vocabulary.HEAD_MODULE, name) for name in leaf.layer_path[-3:-1])
    if in_head or not is_matrix:
        return FALLBACK
    leaves = ((words, leaf.tree.leaves[words].names) for words in leaf.tree.sizes[sides(leaf)[1]])
    in_heads = [w for w, names in leaves if any(matches(vocabulary.HEADS, each) for each in names)]
    return FALLBACK if _only_here(leaf, in_heads) else None


def of_vocabulary(leaf: Leaf) -> Outcome:
    """A matrix with an output for every row of the largest embedding, a size that nothing else has.

    A last layer beside an embedding of the same shape, reversed or not, may share its size.
    """
    tables = leaf.tree.tables
    if not tables or leaf.stack or len(leaf.layer_shape) != 2 or len({*leaf.layer_shape}) == 1:
        return None
    most = max(rows for rows, _ in tables.values())
    largest = [words for words, shape in tables.items() if shape[0] == most]
    is_last = sides(leaf)[1] == most and _only_here(leaf, largest)
    for words, shape in tables.items() if matches(vocabulary.LAST, leaf.layer) else ():
        beside = words[: len(leaf.parent)] == leaf.parent
        is_last |= beside and sorted(shape) == sorted(leaf.layer_shape)
    return FALLBACK if is_last and not _feeds_matrix(leaf) else None


def only_dense(leaf: Leaf) -> Outcome:
    """The one plain matrix of a convolutional network, at the top of the tree.

    In a network that makes images, which ends in no more channels than it begins with, such a
    matrix widens a latent or a time into channels.
    """
    weights = leaf.tree.weights
    if leaf.parent not in ((), ("params",)) or weights[2] != [leaf]:
        return None
    filters = list(filter(plain.filter_shaped, weights[4]))
    ends = [[each.shape[axis] for axis in plain.channels(each)] for each in filters]
    ends = [end for end in ends if end[0] > 1]  # the others are depthwise
    makes_images = ends and min(made for _, made in ends) <= min(taken for taken, _ in ends)
    inputs, outputs = sides(leaf)
    return FALLBACK if filters and not (makes_images and inputs < outputs) else None


def _feeds(leaf: Leaf) -> bool:
    """Returns whether a sibling matrix, or a norm of the same width, takes these outputs."""
    same_width = (words for words in leaf.tree.sizes[sides(leaf)[1]] if len(words) > 1)
    siblings = [leaf.tree.leaves[w].names[-2] for w in same_width if w[:-2] == leaf.parent]
    return _feeds_matrix(leaf) or any(map(vocabulary.is_norm, siblings))


def _feeds_matrix(leaf: Leaf) -> bool:
    """Returns whether a sibling matrix takes these outputs; a later one, if it fits both ways."""
    (inputs, outputs), own = sides(leaf), leaf.words[len(leaf.parent)]
    beside = plain.matrices_in(leaf, leaf.parent).items()
    return any(
        taken == outputs and (inputs != made or plain.number(own) < plain.number(name))
        for name, (taken, made) in beside
    )


def _feeds_other_tower(leaf: Leaf) -> bool:
    """Returns whether the outputs are as wide as the embedding of another part of the model."""
    tables = leaf.tree.tables.items() if len(leaf.axes) == 2 and leaf.parent else ()
    return any(words[0] != leaf.words[0] and shape[1] == sides(leaf)[1] for words, shape in tables)


def _comes_before(leaf: Leaf) -> bool:
    return any(name.startswith("pre_") for name in leaf.layer_path[-2:])


def _only_here(leaf: Leaf, besides: Collection[Words]) -> bool:
    """Returns whether only this layer, some others, and biases are as wide as its outputs."""
    others = leaf.tree.sizes[sides(leaf)[1]] - {leaf.words, *besides}
    return all(matches("bias*,b,*_bias", words[-1]) for words in others)
