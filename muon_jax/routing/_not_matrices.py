"""What is no matrix for Muon, by its name, shape and neighbours: every function sees a leaf.

The outcome is the fallback, or None where the leaf may be a matrix after all.
"""

from muon_jax.routing._context import Leaf
from muon_jax.routing._plain import inputs_and_outputs
from muon_jax.routing._rule import FALLBACK, Outcome
from muon_jax.routing._vocabulary import ATTENTION_INPUT, EXPERTS, NORM, is_norm
from muon_jax.trees._patterns import matches
from muon_jax.views._matrix_axes import without_ones

_KEYS = "{,w_,to_}{key,keys}"


def no_matrix(leaf: Leaf) -> Outcome:
    """At most one axis is longer than one, or one has no entry."""
    return FALLBACK if 0 in leaf.core or len(without_ones(leaf.core)) < 2 else None


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
    numbered = leaf.layer.isdigit() and leaf.place[-2]
    is_map = _has_bias(leaf) or len(leaf.core) > 3 or "patch" in (numbered or leaf.layer)
    return None if is_map else FALLBACK


def learned_tokens(leaf: Leaf) -> Outcome:
    """A state, unlike the weight of a layer that makes queries or a latent of features."""
    is_layer = matches("weight,w", leaf.words[-1]) and leaf.beside(_KEYS)
    return None if is_layer or _has_bias(leaf) else FALLBACK


def _has_bias(leaf: Leaf) -> bool:
    """Tells whether an array is the weight of a layer with a bias, as far as is known."""
    named = matches("weight,w", leaf.words[-1])
    return named and bool(leaf.bias or leaf.bias_is_hidden)


def gate_of_experts(leaf: Leaf) -> Outcome:
    """Experts stand beside it, by name or as stacks of as many matrices as it has outputs."""
    if len(leaf.core) != 2 or leaf.beside(ATTENTION_INPUT):
        return None
    _, outputs = inputs_and_outputs(leaf)
    named = any(matches(EXPERTS, name) for name in leaf.neighbours)
    stacks = [shape for shape in leaf.neighbours.values() if shape and len(shape) == 3]
    return FALLBACK if named or any(shape[0] == outputs for shape in stacks) else None
