"""The last layers, whose outputs are logits: told by their names, what they feed, and their sizes.

Every function sees a leaf. The outcome is the fallback, None where the leaf may be a matrix after
all, or the one view it would have, to ask, where a mask hides what it may feed.
"""

import re
from collections.abc import Collection

from muon_jax.routing._context import Leaf
from muon_jax.routing._plain import feeds_dense, in_attention, inputs_and_outputs, oriented
from muon_jax.routing._rule import FALLBACK, Outcome
from muon_jax.routing._vocabulary import WEIGHT, is_norm
from muon_jax.trees._patterns import Words, matches

NAMED_HEADS = "*_head,*_classifier,head_*"
"""What is called after a head, and may as well be a part of the network with several outputs."""


def logits(leaf: Leaf) -> Outcome:
    """A layer called so, unless it comes before."""
    return None if _comes_before(leaf) else FALLBACK


def end_of_head(leaf: Leaf) -> Outcome:
    """A layer of a head, unless it feeds another; where a number is all its name, a matrix."""
    numbered = re.fullmatch(r"(layers_)?\d+", leaf.layer)
    attends = in_attention(leaf)  # whose heads have nothing to do with logits
    if (numbered and len(leaf.core) != 2) or attends or _feeds(leaf) or _comes_before(leaf):
        return None
    beside = any(
        words[:-2] == leaf.place[:-1] and matches(f"{WEIGHT},scale", words[-1])
        for words in leaf.tree.hidden
    )
    return _unless(beside and len(leaf.core) == 2, leaf)


def end_of_named_head(leaf: Leaf) -> Outcome:
    """The end of what is called after a head, if nothing outside heads is as wide."""
    if len(leaf.core) != 2:
        return None
    _, outputs = inputs_and_outputs(leaf)
    heads = [
        words
        for words in leaf.tree.having[outputs]
        if any(matches(f"head,{NAMED_HEADS}", word) for word in words)
    ]
    if end_of_head(leaf) is None or not _only_here(leaf, outputs, heads):
        return None
    return _unless(bool(leaf.tree.hidden), leaf)


def vocabulary(leaf: Leaf) -> Outcome:
    """A matrix that has an output for every row of the largest embedding, as nothing else does.

    One with the shape of an embedding that stands beside it or beside a part of it, reversed or
    not, may be as wide as others.
    """
    if leaf.stack or len(leaf.core) != 2:
        return None
    inputs, outputs = inputs_and_outputs(leaf)
    if inputs == outputs or feeds_dense(leaf):
        return None
    tables, parent = leaf.tree.tables, leaf.place[:-1]
    alike = [words for words, shape in tables.items() if sorted(shape) == sorted(leaf.core)]
    if any(words[: len(parent)] == parent for words in alike):
        return FALLBACK
    most = max((rows for rows, _ in tables.values()), default=0)
    largest = [words for words, (rows, _) in tables.items() if rows == most]
    if outputs != most or not _only_here(leaf, outputs, largest):
        return None
    return _unless(bool(leaf.tree.hidden), leaf)


def only_dense(leaf: Leaf) -> Outcome:
    """The one plain matrix among convolutions, at the top of the tree, unless it feeds them."""
    at_top = leaf.place[:-1] in ((), ("params",))
    alone = leaf.tree.channels and leaf.tree.matrices == (leaf.words,)
    if not (at_top and alone) or _feeds_filters(leaf):
        return None
    return _unless(bool(leaf.tree.hidden), leaf)


def _unless(hidden: bool, leaf: Leaf) -> Outcome:
    """The fallback, but a question where something is hidden that may speak against it."""
    return (oriented(leaf),) if hidden else FALLBACK


def _feeds(leaf: Leaf) -> bool:
    """Feeds a matrix beside it, or a norm that is as wide as its outputs."""
    if len(leaf.core) != 2:
        return False
    _, outputs = inputs_and_outputs(leaf)
    parent = leaf.place[:-1]
    norms = [name for name in leaf.tree.children[parent] if is_norm(name)]
    vectors = [
        leaf.tree.shapes.get((*parent, name, word))
        for name in norms
        for word in ("scale", "weight")
    ]
    return (outputs,) in vectors or feeds_dense(leaf)


def _feeds_filters(leaf: Leaf) -> bool:
    """Makes from fewer inputs the channels of filters that make an image.

    These filters end in no more channels than they begin with; a filter that sees one channel does
    not count, since it is depthwise or the first one on gray images.
    """
    seeing = [channels for channels in leaf.tree.channels if channels[0] > 1]
    if not seeing:
        return False
    taken, made = zip(*seeing, strict=True)
    inputs, outputs = inputs_and_outputs(leaf)
    fits = outputs in made or outputs % max(taken) == 0 or outputs % max(made) == 0
    return min(made) <= min(taken) and inputs < outputs and fits


def _comes_before(leaf: Leaf) -> bool:
    return any(word.startswith("pre_") for word in leaf.place[-2:])


def _only_here(leaf: Leaf, size: int, besides: Collection[Words]) -> bool:
    """Tells whether nothing has an axis of this size but the layer, some others, and biases."""
    others = leaf.tree.having[size] - {leaf.words, *besides}
    return all(words[-1] in ("bias", "b") for words in others)
