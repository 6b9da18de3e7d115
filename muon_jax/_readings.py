"""How the array of one layer reads as matrices: every function sees a leaf and gives an outcome.

Axes are those of one layer; routing adds the stack axes. None means that shape or neighbours speak
against the reading, several views that they leave it open.
"""

import dataclasses
from collections.abc import Callable

from muon_jax._leaves import Leaf
from muon_jax._matrix_axes import MatrixAxes, Shape, Split, without_ones
from muon_jax._names import ATTENTION_INPUT, ATTENTION_OUTPUT, FUSED_QUERY_KEY_VALUE, matches
from muon_jax._rules import FALLBACK, Outcome

EXPERTS = "*expert*,*moe*"
ATTENTION = "*attn*,*attention*"
RECURRENT = "dense_h,w_h,hh,h2h,weight_hh*,recurrent_kernel"
DOWN = "*down*,wo,w2,w_out,w_o,output,out*,linear,fc2,c_proj"

# Plain matrices


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
    if _bias_leads(leaf):
        return MatrixAxes(rows=range(len(bias), ndim), cols=range(len(bias)))
    return None


def several(leaf: Leaf) -> tuple[MatrixAxes, ...]:
    """All that an array of three axes or more may be."""
    first, *inner, last = range(len(leaf.core))
    return (
        MatrixAxes(rows=inner[-1], cols=last),
        MatrixAxes(rows=(first, *inner), cols=last),
        MatrixAxes(rows=first, cols=(*inner, last)),
    )


def oriented(leaf: Leaf, lead: int = 0) -> MatrixAxes:
    """The two axes after `lead`: the bias, or else the name, says which one is the output."""
    batch, (first, second) = leaf.core[:lead], leaf.core[lead : lead + 2]
    outputs_first = leaf.outputs_first
    if first != second and leaf.bias in ((*batch, first), (*batch, second)):
        outputs_first = leaf.bias == (*batch, first)
    return MatrixAxes(lead + 1, lead) if outputs_first else MatrixAxes(lead, lead + 1)


# Attention


def attention_input(leaf: Leaf) -> Outcome:
    """(inputs, heads, size), or (heads, inputs, size) where the output layer shows that width.

    Heads that share a key may have an axis of their own: (inputs, groups, heads, size).
    """
    if leaf.outputs_first:
        return None
    if len(leaf.core) == 4:
        heads = without_ones(leaf.core[1:])
        output = leaf.beside(ATTENTION_OUTPUT, ndim=len(heads) + 1)
        return MatrixAxes(rows=0, cols=(1, 2, 3)) if output and output[:-1] == heads else None
    if len(leaf.core) != 3:
        return None
    if leaf.bias_is_hidden and not leaf.beside(ATTENTION_OUTPUT):
        return several(leaf)  # it might be (layers, inputs, outputs)
    # One head stored first, or a convolution of one pixel: the same matrix.
    return _filter(leaf) if leaf.core[0] == 1 else _with_heads(leaf, (0, 1, 2))


def attention_output(leaf: Leaf) -> Outcome:
    """(heads, size, outputs), beside a query or within something called attention.

    Heads in groups, as a query beside it has them, are two axes: (groups, heads, size, outputs).
    """
    if leaf.outputs_first:
        return None
    if len(leaf.core) == 4:
        heads = without_ones(leaf.core[:-1])
        query = leaf.beside(ATTENTION_INPUT, ndim=len(heads) + 1)
        return MatrixAxes(rows=(0, 1, 2), cols=3) if query and query[1:] == heads else None
    if len(leaf.core) != 3:
        return None
    named = any(matches(ATTENTION, word) for word in leaf.place)
    queried = leaf.beside(f"{ATTENTION_INPUT},{FUSED_QUERY_KEY_VALUE}")
    if not named and not queried:
        return None
    if leaf.bias_is_hidden and not queried:
        return several(leaf)
    return MatrixAxes(rows=(0, 1), cols=2)


def fused_query_key_value(leaf: Leaf) -> Outcome:
    return _pointwise(leaf, _fused_columns) or _fused_heads(leaf, 3)


def fused_key_value(leaf: Leaf) -> Outcome:
    return _pointwise(leaf, _halves) or _fused_heads(leaf, 2)


def fused_in_every_head(leaf: Leaf) -> Outcome:
    """Some models lay q, k and v down whole, others head by head: the shape is the same."""
    view = matrix(leaf)
    return (_split(view, 3), view) if view else _fused_heads(leaf, 3)


def _pointwise(leaf: Leaf, read: Callable[[Leaf], Outcome]) -> Outcome:
    """Reads a convolution that sees one pixel at a time as the matrix that it is."""
    ones = tuple(axis for axis, size in enumerate(leaf.shape) if size == 1)
    kept = [axis for axis, size in enumerate(leaf.core) if size != 1]
    if len(kept) != 2:
        return None
    outcome = read(dataclasses.replace(leaf, stack=(*leaf.stack, *ones)))

    def unfolded(view: MatrixAxes) -> MatrixAxes:
        return MatrixAxes(kept[view.rows[0]], kept[view.cols[0]], view.split)

    if isinstance(outcome, tuple):
        return tuple(map(unfolded, outcome))
    return unfolded(outcome) if isinstance(outcome, MatrixAxes) else outcome


def _fused_columns(leaf: Leaf) -> Outcome:
    """The output layer shows how wide the queries are; without it, only three squares are sure."""
    view = oriented(leaf)
    known = leaf.bias or leaf.outputs_first
    for rows, cols in [(view.rows, view.cols), (view.cols, view.rows)][: 1 if known else 2]:
        inputs, outputs = leaf.core[rows[0]], leaf.core[cols[0]]
        output_layer = leaf.beside(ATTENTION_OUTPUT, ndim=2) or (0, 0)
        query, width = reversed(output_layer) if leaf.outputs_first else output_layer
        if width != inputs:
            query = inputs if outputs == 3 * inputs else 0
        if query and query < outputs and (outputs - query) % 2 == 0:
            shared = (outputs - query) // 2
            return MatrixAxes(rows, cols, 3 if shared == query else (query, shared, shared))
    thirds = (_split(view, 3),) if leaf.core[view.cols[0]] % 3 == 0 else ()
    return view, *thirds


def _fused_heads(leaf: Leaf, parts: int) -> Outcome:
    """An axis as long as there are parts holds them; otherwise the heads or their sizes do."""
    core, ndim = leaf.core, len(leaf.core)
    if ndim not in (3, 4):
        return None
    pairs = [axis for axis in range(ndim) if core[axis] == parts]
    readings = []
    for pair in pairs:
        *outer, last = [axis for axis in range(ndim) if axis != pair]
        either = _with_heads(leaf, [*outer, last]), MatrixAxes(last, outer)
        turned = _bias_leads(leaf) if leaf.bias else leaf.outputs_first and pair == 0
        readings.append(either[::-1] if turned else either)
    views = [likely for likely, _ in readings]
    if len(views) == 1:
        return readings[0] if _may_be_turned(leaf, views[0]) else views[0]
    whole = MatrixAxes(rows=range(ndim - 2), cols=(ndim - 2, ndim - 1))
    heads, size = (core[axis] for axis in whole.cols)
    if not views and heads % parts == 0:
        views.append(_split(whole, parts))
    if not views and size % parts == 0:
        views.append(_split(whole, Split((size // parts,) * parts, interleaved=True)))
    return whole, *views


def _may_be_turned(leaf: Leaf, view: MatrixAxes) -> bool:
    """Tells whether a hidden bias might speak against heads that no output layer confirms."""
    output = leaf.beside(ATTENTION_OUTPUT)
    width = output[0 if leaf.outputs_first else -1] if output else None
    return leaf.bias_is_hidden and len(view.cols) > 1 and leaf.core[view.rows[0]] != width


def _bias_leads(leaf: Leaf) -> bool:
    """Tells whether the bias has the first axes of the weight, and not the last ones."""
    bias = leaf.bias or ()
    return leaf.core[: len(bias)] == bias != leaf.core[len(leaf.core) - len(bias) :]


def _with_heads(leaf: Leaf, axes: Shape | list[int]) -> MatrixAxes:
    """Two axes, or three of which the last two, or the first and last, are heads and their size."""
    if len(axes) == 2:
        return MatrixAxes(rows=axes[0], cols=axes[1])
    first, second, last = axes
    output = leaf.beside(ATTENTION_OUTPUT, ndim=3)
    if output and leaf.core[second] == output[-1] != leaf.core[first]:
        return MatrixAxes(rows=second, cols=(first, last))
    return MatrixAxes(rows=first, cols=(second, last))


def _split(view: MatrixAxes, split: int | Split) -> MatrixAxes:
    return MatrixAxes(view.rows, view.cols, split)


# Gates


def paired(leaf: Leaf) -> Outcome:
    """An axis of two apart from inputs and outputs: (inputs, 2, outputs), (2, inputs, outputs)."""
    core = leaf.core
    if len(core) < 3 or core.count(2) != 1 or core[-1] == 2:
        return None
    rows, cols = [axis for axis in range(len(core)) if core[axis] != 2][-2:]
    down = leaf.beside(DOWN, ndim=2)
    if down and core[rows] == down[0] != core[cols]:
        rows, cols = cols, rows
    return MatrixAxes(rows, cols)


def gate_and_up(leaf: Leaf) -> Outcome:
    """Two halves of the outputs; experts may come first."""
    if len(leaf.core) not in (2, 3):
        return None
    view = oriented(leaf, lead=len(leaf.core) - 2)
    down = leaf.beside(DOWN, ndim=len(leaf.core))
    inputs, outputs = leaf.core[view.rows[0]], leaf.core[view.cols[0]]
    if down and {inputs, outputs / 2} != {*down[-2:]} == {outputs, inputs / 2}:
        view = MatrixAxes(view.cols, view.rows)
    return _split(view, 2) if leaf.core[view.cols[0]] % 2 == 0 else None


def gated_input(leaf: Leaf) -> Outcome:
    """Twice as many outputs as the output layer beside it has inputs."""
    output = leaf.beside("out_proj,output_proj", ndim=2)
    if len(leaf.core) != 2 or not output:
        return None
    inner = output[1] if leaf.outputs_first else output[0]
    return _halves(leaf) if leaf.core[oriented(leaf).cols[0]] == 2 * inner else None


def gated_up(leaf: Leaf) -> Outcome:
    """Twice as many outputs as the way down has inputs, which leads back to its own inputs."""
    down = leaf.beside("w3" if leaf.layer == "w12" else DOWN, ndim=len(leaf.core))
    lead = len(leaf.core) - 2
    if not down or lead not in (0, 1) or (lead and expert_stack(leaf) is None):
        return None
    view = oriented(leaf, lead)
    inner, outputs = reversed(down[lead:]) if leaf.outputs_first else down[lead:]
    fits = leaf.core[view.rows[0]] == outputs and leaf.core[view.cols[0]] == 2 * inner
    return _split(view, 2) if fits and leaf.core[:lead] == down[:lead] else None


def _halves(leaf: Leaf) -> Outcome:
    view = matrix(leaf)
    return _split(view, 2) if view and leaf.core[view.cols[0]] % 2 == 0 else None


def recurrent_gates(leaf: Leaf) -> Outcome:
    """Three or four gates over one hidden state, whose width the recurrent kernel shows."""
    view = matrix(leaf) or _filter(leaf)
    kernel = leaf.core if matches(RECURRENT, leaf.layer) else leaf.beside(RECURRENT)
    kernel = kernel or leaf.tree.shapes.get((*leaf.place, "recurrent_kernel"))  # Keras
    if view is None or kernel is None:
        return None
    hidden = min(kernel) if len(kernel) == 2 else kernel[1 if view.cols == (0,) else -2]
    gates, rest = divmod(leaf.core[view.cols[0]], hidden)
    return _split(view, gates) if gates in (3, 4) and not rest else None


def four_gates(leaf: Leaf) -> Outcome:
    """Input and hidden state joined along the inputs, as Haiku stores an LSTM."""
    view = matrix(leaf)
    return _split(view, 4) if view and leaf.core[view.cols[0]] % 4 == 0 else None


# Experts and convolutions


def expert_stack(leaf: Leaf) -> Outcome:
    """(experts, inputs, outputs) below something called experts, unless attention comes between."""
    if len(leaf.core) == 3:
        for word in reversed(leaf.place):
            if matches(ATTENTION, word):
                break
            if matches(EXPERTS, word):
                return oriented(leaf, lead=1)
    return None


def convolution(leaf: Leaf) -> Outcome:
    """(space…, inputs, outputs), or (outputs, inputs, space…) as torch stores it.

    Where a mask hides the bias, which might turn the layer round, or what might show that a filter
    of unequal sides is a stack of filters, the reading is one of several.
    """
    view = _filter(leaf)
    masked = view and leaf.tree.hidden and not _is_space(_space(leaf))
    if view and (masked or leaf.bias_is_hidden):
        return tuple(dict.fromkeys((view, *several(leaf))))
    return view


def _filter(leaf: Leaf) -> MatrixAxes | None:
    if len(leaf.core) < 3:
        return None
    axes = range(len(leaf.core))
    if _space_is_last(leaf):
        return MatrixAxes(rows=axes[1:], cols=axes[0])
    *space, inputs, outputs = axes
    if leaf.bias == (leaf.core[inputs],) != (leaf.core[outputs],):
        inputs, outputs = outputs, inputs  # a transposed convolution with `transpose_kernel`
    return MatrixAxes(rows=(*space, inputs), cols=outputs)


def filter_shaped(leaf: Leaf) -> Outcome:
    """Space is one pixel, or two axes or more of one length: (3, 3), (7, 1), (1, 3, 3)."""
    space = _space(leaf)
    if not _is_space(space) or (len(space) == 1 and space != (1,)):
        return None
    return convolution(leaf)


def single_channel(leaf: Leaf) -> Outcome:
    """Every filter sees one channel: depthwise, or the first layer on gray images."""
    single_head = len(leaf.core) == 3 and matches(ATTENTION_INPUT, leaf.layer)
    if len(leaf.core) < 3 or single_head:
        return None
    return FALLBACK if leaf.core[1 if _space_is_last(leaf) else -2] == 1 else None


def _space(leaf: Leaf) -> Shape:
    return leaf.core[2:] if _space_is_last(leaf) else leaf.core[:-2]


def _space_is_last(leaf: Leaf) -> bool:
    """The bias says whether outputs or space come first, or else the name.

    The shape overrules a name by which the sides of a filter were unequal and longer than there are
    channels, where they are equal the other way round.
    """
    core, named = leaf.core, leaf.outputs_first
    if core[0] != core[-1] and leaf.bias in ((core[0],), (core[-1],)):
        return leaf.bias == (core[0],)
    outputs_lead, outputs_end = (core[2:], core[:2]), (core[:-2], core[-2:])
    space, channels = outputs_lead if named else outputs_end
    other_space, _ = outputs_end if named else outputs_lead
    odd = not _is_space(space) and max(space) > max(channels)
    return not named if odd and len(set(other_space)) == 1 else named


def _is_space(sizes: Shape) -> bool:
    return len(set(sizes) - {1}) <= 1


def taps_by_channel(leaf: Leaf) -> Outcome:
    """(taps, channels), or in Keras (space…, channels, multiplier)."""
    keras = leaf.words[-1] == "depthwise_kernel"
    return FALLBACK if len(leaf.core) == 2 or keras else None
