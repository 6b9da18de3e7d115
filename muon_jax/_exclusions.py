"""What is no matrix for Muon, by its name, shape and neighbours: every function sees a leaf.

The outcome is the fallback, or None where the leaf may be a matrix after all.
"""

import math

from muon_jax._leaves import Leaf
from muon_jax._names import ATTENTION_INPUT, matches
from muon_jax._readings import EXPERTS, oriented
from muon_jax._rules import FALLBACK, Outcome

_KEYS = "{,w_,to_}{key,keys}"


def no_matrix(leaf: Leaf) -> Outcome:
    """At most one axis is longer than one."""
    return FALLBACK if math.prod(leaf.core) in (0, max(leaf.core, default=1)) else None


def gain(leaf: Leaf) -> Outcome:
    """A bias or gain, unlike a matrix B beside A or C, as in a LoRA or a state space."""
    if leaf.words[-1] != "b" or len(leaf.core) < 2:
        return FALLBACK
    others = [leaf.beside(name) for name in ("a", "c")]
    chained = any(o and (o[-1] == leaf.core[0] or o[0] == leaf.core[-1]) for o in others)
    return None if chained or any("lora" in word for word in leaf.words) else FALLBACK


def elementwise(leaf: Leaf) -> Outcome:
    """A gain over several axes: its bias has its whole shape."""
    return FALLBACK if len(leaf.core) > 1 and leaf.bias == leaf.core else None


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


def tied_shape(leaf: Leaf) -> Outcome:
    """A matrix outside all layers that has the shape of an embedding, reversed or not."""
    in_layer = leaf.stack or any(word[-1].isdigit() for word in leaf.place[:-1])
    is_table = not leaf.tree.tables.isdisjoint({leaf.core, leaf.core[::-1]})
    return FALLBACK if is_table and not in_layer and leaf.core != leaf.core[::-1] else None


def only_dense(leaf: Leaf) -> Outcome:
    """The one plain matrix among convolutions, at the top of the tree."""
    at_top = leaf.place[:-1] in ((), ("params",))
    return FALLBACK if at_top and leaf.tree.dense_among_convolutions == (leaf.words,) else None


def gate_of_experts(leaf: Leaf) -> Outcome:
    """Experts stand beside it, by name or as stacks of as many matrices as it has outputs."""
    if len(leaf.core) != 2 or leaf.beside(ATTENTION_INPUT):
        return None
    outputs = leaf.core[oriented(leaf).cols[0]]
    named = any(matches(EXPERTS, name) for name in leaf.neighbours)
    stacks = [shape for shape in leaf.neighbours.values() if shape and len(shape) == 3]
    return FALLBACK if named or any(shape[0] == outputs for shape in stacks) else None
