"""What is no matrix for Muon, by its name, shape and neighbours: every function sees a leaf.

The outcome is the fallback, or None where the leaf may be a matrix after all.
"""

import math
import re

from muon_jax._leaves import Leaf
from muon_jax._matrix_axes import Shape, without_ones
from muon_jax._names import ATTENTION_INPUT, NORM, WEIGHT, Words, is_norm, matches
from muon_jax._readings import EXPERTS, oriented
from muon_jax._rules import FALLBACK, Outcome

_KEYS = "{,w_,to_}{key,keys}"


def no_matrix(leaf: Leaf) -> Outcome:
    """At most one axis is longer than one."""
    return FALLBACK if math.prod(leaf.core) in (0, max(leaf.core, default=1)) else None


def gain(leaf: Leaf) -> Outcome:
    """A bias or gain, unlike a matrix B beside A or C, as in a LoRA or a state space.

    No gain is what stands where a norm has its own, but has the name of a map or a bias for its
    outputs alone.
    """
    if matches(NORM, leaf.layer):
        biased = leaf.bias and len(leaf.bias) < len(without_ones(leaf.core))
        return None if biased or not is_norm(leaf.layer) else FALLBACK
    if leaf.words[-1] != "b" or len(leaf.core) < 2:
        return FALLBACK
    others = [leaf.beside(name) for name in ("a", "c")]
    chained = any(o and (o[-1] == leaf.core[0] or o[0] == leaf.core[-1]) for o in others)
    return None if chained or any("lora" in word for word in leaf.words) else FALLBACK


def elementwise(leaf: Leaf) -> Outcome:
    """A gain over several axes: its bias has its whole shape."""
    sizes = without_ones(leaf.core)
    return FALLBACK if len(sizes) > 1 and leaf.bias == sizes else None


def broadcast(leaf: Leaf) -> Outcome:
    """An array that is no weight and starts with an axis of one is broadcast to activations."""
    is_weight = matches("*kernel,*weight,*weights,w,w?,w_*", leaf.words[-1])
    return FALLBACK if leaf.core[0] == 1 and not is_weight else None


def position(leaf: Leaf) -> Outcome:
    """A table, unlike a layer that encodes positions."""
    return None if _has_bias(leaf) else FALLBACK


def lookup(leaf: Leaf) -> Outcome:
    """A table, unlike a layer with a bias or a patch embedding, which are maps."""
    is_map = _has_bias(leaf) or len(leaf.core) > 3 or "patch" in leaf.layer
    return None if is_map else FALLBACK


def learned_tokens(leaf: Leaf) -> Outcome:
    """A state, unlike the weight of a layer that makes queries or a latent of features."""
    is_layer = matches("weight,w", leaf.words[-1]) and leaf.beside(_KEYS)
    return None if is_layer or _has_bias(leaf) else FALLBACK


def _has_bias(leaf: Leaf) -> bool:
    """Tells whether an array is the weight of a layer with a bias, as far as is known."""
    named = matches("weight,w", leaf.words[-1])
    return named and bool(leaf.bias or leaf.bias_is_hidden)


def vocabulary(leaf: Leaf) -> Outcome:
    """A matrix outside all layers with an output a row of an embedding, unless it feeds another.

    One of the shape of the table is told either way round.
    """
    in_layer = leaf.stack or any(word[-1].isdigit() for word in leaf.place[:-1])
    if in_layer or len(leaf.core) != 2 or leaf.core[0] == leaf.core[1] or _feeds_dense(leaf):
        return None
    is_table = not leaf.tree.tables.isdisjoint({leaf.core, leaf.core[::-1]})
    outputs = leaf.core[oriented(leaf).cols[0]]
    return FALLBACK if is_table or any(outputs == rows for rows, *_ in leaf.tree.tables) else None


def end_of_head(leaf: Leaf) -> Outcome:
    """A layer of a head, unless it feeds another; where a number is all its name, a matrix."""
    if (leaf.layer.isdigit() and len(leaf.core) != 2) or _feeds_dense(leaf):
        return None
    parent = leaf.place[:-1]
    beside = any(words[: len(parent)] == parent for words in _hidden_weights(leaf))
    may_feed = beside and len(leaf.core) == 2
    return (oriented(leaf),) if may_feed else FALLBACK


def _feeds_dense(leaf: Leaf) -> bool:
    """Has as many outputs as a matrix beside it has inputs: if that fits both ways, a later one."""
    if len(leaf.core) != 2:
        return False
    inputs, outputs = _sizes(leaf.core, oriented(leaf).rows == (1,))
    others = {
        name: _sizes(shape, leaf.outputs_first)
        for name, shape in leaf.neighbours.items()
        if shape and len(shape) == 2 and shape not in leaf.tree.tables
    }
    return any(
        outputs == taken and (inputs != made or _number(leaf.layer) < _number(name))
        for name, (taken, made) in others.items()
    )


def _sizes(shape: Shape, outputs_first: bool) -> tuple[int, int]:
    """Inputs and outputs."""
    first, second = shape
    return (second, first) if outputs_first else (first, second)


def _number(name: str) -> int:
    """The number at the end of a name, or 0."""
    *_, digits = re.split(r"\D", name)
    return int(digits or 0)


def only_dense(leaf: Leaf) -> Outcome:
    """The one plain matrix among convolutions, at the top of the tree, unless it feeds them."""
    at_top = leaf.place[:-1] in ((), ("params",))
    alone = leaf.tree.channels and leaf.tree.matrices == (leaf.words,)
    if not (at_top and alone) or _feeds_filters(leaf):
        return None
    return (oriented(leaf),) if _hidden_weights(leaf) else FALLBACK


def _hidden_weights(leaf: Leaf) -> list[Words]:
    """Weights that a mask hides; with them the last layer looks like any other."""
    return [words for words in leaf.tree.hidden if matches(WEIGHT, words[-1])]


def _feeds_filters(leaf: Leaf) -> bool:
    """Makes the channels of filters that make an image: of those that begin no narrower."""
    inputs, outputs = zip(*leaf.tree.channels, strict=True)
    made = leaf.core[oriented(leaf).cols[0]]
    return min(outputs) <= min(inputs) and (made in outputs or made % max(inputs) == 0)


def gate_of_experts(leaf: Leaf) -> Outcome:
    """Experts stand beside it, by name or as stacks of as many matrices as it has outputs."""
    if len(leaf.core) != 2 or leaf.beside(ATTENTION_INPUT):
        return None
    outputs = leaf.core[oriented(leaf).cols[0]]
    named = any(matches(EXPERTS, name) for name in leaf.neighbours)
    stacks = [shape for shape in leaf.neighbours.values() if shape and len(shape) == 3]
    return FALLBACK if named or any(shape[0] == outputs for shape in stacks) else None
