"""Finds parameters that Muon should not train, by name, shape and siblings.

Every function takes a leaf and returns the fallback, or None if the leaf may be a matrix.
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
    """Excludes scalars, vectors and empty arrays: fewer than two axes are longer than one."""
    return FALLBACK if 0 in leaf.layer_shape or len(leaf.axes) < 2 else None


def gain(leaf: Leaf) -> Outcome:
    """Excludes biases and gains, but not projections named after a norm, nor LoRA factors."""
    if not matches(vocabulary.NORM, leaf.layer):
        return None if matches("*lora_b", leaf.layer) else FALLBACK
    biased = leaf.bias and len(leaf.bias) < len(leaf.axes)
    return None if biased or not vocabulary.is_norm(leaf.layer) else FALLBACK


def letter_b(leaf: Leaf) -> Outcome:
    """Excludes a bias called `b`, but not the matrix B of LoRA or of a state space model."""
    first, last = leaf.layer_shape[0], leaf.layer_shape[-1]
    if leaf.sibling("a_log,log_a")[:1] == (first,):
        return MatrixAxes(rows=1, cols=0)  # (state, inputs): one decay rate a row
    others = [leaf.sibling(name) for name in ("a", "c")]
    chained = any(other and (other[-1] == first or other[0] == last) for other in others)
    return None if chained or any("lora" in name for name in leaf.names) else FALLBACK


def broadcast(leaf: Leaf) -> Outcome:
    """Excludes arrays of shape (1, ...) that are no weight: they are added to activations."""
    is_weight = matches("*kernel,*weight,*weights,w,w?,w_*", leaf.names[-1])
    return FALLBACK if leaf.layer_shape[0] == 1 and not is_weight else None


def table(leaf: Leaf) -> Outcome:
    """Excludes tables and learned states, but not layers with a bias or a sibling key."""
    of_layer = matches("weight,w", leaf.names[-1])
    has_partner = leaf.bias or leaf.sibling("{,w_,to_}{key,keys}")
    of_patches = any("patch" in name for name in leaf.layer_path[-2 if leaf.layer == "0" else -1 :])
    is_kernel = leaf.names[-1] == "kernel" or matches(vocabulary.PROJECTION, leaf.layer)
    is_map = (of_layer and has_partner) or len(leaf.axes) > 3 or of_patches or is_kernel
    return None if is_map else FALLBACK


def gate_of_experts(leaf: Leaf) -> Outcome:
    """Excludes a gate with sibling experts: named so, or (experts, inputs, ...) in shape."""
    if len(leaf.layer_shape) != 2 or leaf.sibling(vocabulary.ATTENTION_INPUT):
        return None
    children = leaf.tree.children[leaf.parent].keys() - {leaf.words[len(leaf.parent)]}
    named = any(matches(vocabulary.EXPERTS, name) for name in children)
    inputs, outputs = sides(leaf)
    stacks = [shape for shape in leaf.siblings.values() if len(shape) == 3 and inputs in shape[1:]]
    return FALLBACK if named or outputs in [shape[0] for shape in stacks] else None


def choice_of_codes(leaf: Leaf) -> Outcome:
    """Excludes a layer with one output for every entry of a sibling codebook."""
    codes = leaf.sibling("code*,*codebook*,*codevectors")
    return FALLBACK if len(leaf.axes) == 2 and sides(leaf)[1] in codes[:-1] else None


def single_channel(leaf: Leaf) -> Outcome:
    """Excludes filters of one input channel: depthwise, or a first layer on gray images."""
    shape = leaf.layer_shape
    one_head = len(shape) == 3 and matches(vocabulary.ATTENTION_INPUT, leaf.layer)
    fits = len(shape) > 2 and not one_head and shape[1 if plain.space_is_last(leaf) else -2] == 1
    return FALLBACK if fits else None


def taps_by_channel(leaf: Leaf) -> Outcome:
    """Excludes (taps, channels), the depthwise form of a convolution over time."""
    return FALLBACK if len(leaf.layer_shape) == 2 else None


def logits(leaf: Leaf) -> Outcome:
    """Excludes layers named like a head, except `pre_*` layers and inputs of another tower."""
    feeds = matches("multi_head,*att*", leaf.layer) or _comes_before(leaf)
    return None if feeds or _feeds_other_tower(leaf) else FALLBACK


def end_of_head(leaf: Leaf) -> Outcome:
    """Excludes the last layer of a head, if no other layer takes its outputs."""
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
    """Excludes a matrix with an output for every row of the largest embedding.

    No other array may have that size, except a last layer whose sibling is an embedding of the same
    shape, transposed or not.
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
    """Excludes the only dense layer of a convolutional network, at the top of the tree.

    The dense layer of a network that generates images is no head: it expands a latent or a time
    into channels. Such a network ends in no more channels than it begins with.
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
    """Returns whether a sibling matrix, or a norm of the same width, consumes these outputs."""
    same_width = (words for words in leaf.tree.sizes[sides(leaf)[1]] if len(words) > 1)
    siblings = [leaf.tree.leaves[w].names[-2] for w in same_width if w[:-2] == leaf.parent]
    return _feeds_matrix(leaf) or any(map(vocabulary.is_norm, siblings))


def _feeds_matrix(leaf: Leaf) -> bool:
    """Returns whether a sibling consumes these outputs; a later one, if it also fits before."""
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
    """Returns whether no array but this, `besides` and biases has the size of its outputs."""
    others = leaf.tree.sizes[sides(leaf)[1]] - {leaf.words, *besides}
    return all(matches("bias*,b,*_bias", words[-1]) for words in others)
