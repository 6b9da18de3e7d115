"""How the array of one layer reads as matrices: every function sees a leaf and gives an outcome.

Axes are those of one layer; routing adds the stack axes. None means that shape or neighbours speak
against the reading, several views that they leave it open.
"""

import re

from muon_jax.routing._context import Leaf
from muon_jax.routing._rule import Outcome
from muon_jax.routing._vocabulary import ATTENTION, ATTENTION_INPUT, EXPERTS, FUSED_QUERY_KEY_VALUE
from muon_jax.trees._patterns import matches
from muon_jax.views._matrix_axes import MatrixAxes, Split

QUERY = f"{ATTENTION_INPUT},{FUSED_QUERY_KEY_VALUE}"


def matrix(leaf: Leaf) -> MatrixAxes | None:
    """Inputs and outputs have an axis each."""
    return oriented(leaf) if len(leaf.core) == 2 else None


def low_rank_factor(leaf: Leaf) -> Outcome:
    """(inputs…, rank) and (rank, outputs…): the rank that both share tells how many are stacked."""
    if len(leaf.core) == 2:
        return oriented(leaf)
    name, letter = leaf.layer[:-1], leaf.layer[-1:]
    other = leaf.beside(name + {"a": "b", "b": "a"}.get(letter, ""))
    if not other or leaf.outputs_first:
        return None
    first, second = (leaf.core, other) if letter == "a" else (other, leaf.core)
    leads = [
        lead
        for lead in range(min(len(first), len(second)) - 1)
        if first[:lead] == second[:lead] and first[-1] == second[lead]
    ]
    if len(leads) != 1:
        return None
    axes = range(leads[0], len(leaf.core))
    if letter == "a":
        return MatrixAxes(rows=axes[:-1], cols=axes[-1])
    return MatrixAxes(rows=axes[0], cols=axes[1:])


def by_bias(leaf: Leaf) -> Outcome:
    """The axes that the bias has are the outputs, the others the inputs."""
    bias, ndim = leaf.bias or (), len(leaf.core)
    inputs = ndim - len(bias)
    if ndim < 3 or not bias or not inputs:
        return None
    if leaf.core[inputs:] == bias:
        if ndim == 3 and len(bias) == 2 and leaf.core[0] == leaf.core[1]:
            return several(leaf)  # a stack of layers with a bias each would look the same
        return MatrixAxes(rows=range(inputs), cols=range(inputs, ndim))
    if bias_leads(leaf):
        return MatrixAxes(rows=range(len(bias), ndim), cols=range(len(bias)))
    return None


def several(leaf: Leaf) -> tuple[MatrixAxes, ...]:
    """What an array of three axes or more may be: a stack of matrices, or one, cut at any axis."""
    axes = range(len(leaf.core))
    cuts = [(axes[:cut], axes[cut:]) for cut in reversed(axes[1:])]
    pairs = [(axes[-2:-1], axes[-1:]), *cuts]
    if leaf.outputs_first:
        pairs = [(axes[-1:], axes[-2:-1]), *((cols, rows) for rows, cols in reversed(cuts))]
    return tuple(MatrixAxes(rows, cols) for rows, cols in pairs)


def oriented(leaf: Leaf, lead: int = 0) -> MatrixAxes:
    """The two axes after `lead`: the bias, or else the name, says which one is the output."""
    batch, (first, second) = leaf.core[:lead], leaf.core[lead : lead + 2]
    outputs_first = leaf.outputs_first
    if first != second and leaf.bias in ((*batch, first), (*batch, second)):
        outputs_first = leaf.bias == (*batch, first)
    return MatrixAxes(lead + 1, lead) if outputs_first else MatrixAxes(lead, lead + 1)


def expert_stack(leaf: Leaf) -> Outcome:
    """(experts, inputs, outputs) below something called experts, unless attention comes between."""
    if len(leaf.core) == 3:
        for word in reversed(leaf.place):
            if matches(ATTENTION, word):
                break
            if matches(EXPERTS, word):
                return oriented(leaf, lead=1)
    return None


def in_attention(leaf: Leaf) -> bool:
    """Tells whether a layer belongs to attention, by a name or a query beside it."""
    named = any(matches(ATTENTION, word) for word in leaf.place)
    return named or leaf.beside(QUERY) is not None


def bias_leads(leaf: Leaf) -> bool:
    """Tells whether the bias has the first axes of the weight, and not the last ones."""
    bias = leaf.bias or ()
    return leaf.core[: len(bias)] == bias != leaf.core[len(leaf.core) - len(bias) :]


def in_parts(view: MatrixAxes, split: int | Split) -> MatrixAxes:
    """The same view of several matrices along its outputs."""
    return MatrixAxes(view.rows, view.cols, split)


def halves(leaf: Leaf) -> Outcome:
    """Two matrices side by side along the outputs."""
    view = matrix(leaf)
    return in_parts(view, 2) if view and leaf.core[view.cols[0]] % 2 == 0 else None


def inputs_and_outputs(leaf: Leaf) -> tuple[int, int]:
    """The sizes of a plain matrix."""
    view = oriented(leaf)
    return leaf.core[view.rows[0]], leaf.core[view.cols[0]]


def may_feed(leaf: Leaf) -> dict[str, int]:
    """The outputs of all matrices beside a matrix that have as many inputs as it has outputs."""
    _, outputs = inputs_and_outputs(leaf)
    beside = {
        name: shape[::-1] if leaf.outputs_first else shape
        for name, shape in leaf.neighbours.items()
        if shape and len(shape) == 2 and shape not in leaf.tree.tables.values()
    }
    return {name: made for name, (taken, made) in beside.items() if taken == outputs}


def feeds_dense(leaf: Leaf) -> bool:
    """Tells whether a matrix feeds one beside it: if that fits both ways, only a later one."""
    inputs, _ = inputs_and_outputs(leaf)
    return any(
        inputs != made or _number(leaf.layer) < _number(name)
        for name, made in may_feed(leaf).items()
    )


def _number(name: str) -> int:
    """The number at the end of a name, or 0."""
    *_, digits = re.split(r"\D", name)
    return int(digits or 0)
