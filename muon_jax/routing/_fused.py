"""Views of arrays that hold several matrices. Every function takes a leaf and returns an outcome.

Such arrays fuse query, key and value; gate and up; or the gates of a recurrent cell.
"""

import dataclasses
from typing import Any

from muon_jax.routing import _plain as plain
from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf
from muon_jax.routing._plain import matrix, sides
from muon_jax.routing._rule import Outcome
from muon_jax.trees._patterns import matches
from muon_jax.views._matrix_axes import MatrixAxes

_HIDDEN = "dense_h,w_h,hh,h2h,weight_hh*,recurrent_kernel,recurrent_weight*,hidden_to_hidden"
_DOWN = "*down*,wo,w2,w_out,w_o,output,out*,linear,fc2,c_proj"


def query_key_value(leaf: Leaf) -> Outcome:
    """Splits the outputs into query, key and value, or makes an axis of size three a batch axis.

    The width of the queries is the input width of the sibling output layer. Without this sibling,
    only three square matrices are certain. GPT-NeoX and BLOOM store `query_key_value` head by head
    in the same shape, so that the name is ambiguous.
    """
    view = matrix(leaf)
    if view is None:
        return _in_heads(leaf, 3)
    if leaf.layer == "query_key_value":
        return _in_parts(view, 3), view
    views = [view, MatrixAxes(view.cols, view.rows)]
    for each in views[:1] if leaf.bias or leaf.outputs_first else views:
        inputs, outputs = sides(leaf, each)
        output_layer = leaf.sibling(vocabulary.ATTENTION_OUTPUT, ndim=2) or (0, 0)
        query, width = reversed(output_layer) if leaf.outputs_first else output_layer
        if width != inputs:
            query = inputs if outputs == 3 * inputs else 0
        shared, rest = divmod(outputs - query, 2)
        if 0 < query < outputs and not rest:
            return _in_parts(each, 3 if shared == query else (query, shared, shared))
    return (view, _in_parts(view, 3)) if sides(leaf, view)[1] % 3 == 0 else (view,)


def key_value(leaf: Leaf) -> Outcome:
    """Splits the outputs into key and value, or makes an axis of size two a batch axis."""
    view = matrix(leaf)
    return _halves(leaf, view) if view else _in_heads(leaf, 2)


def three_squares(leaf: Leaf) -> Outcome:
    """Splits an attention layer of any name if its only sibling is a square output layer."""
    view = matrix(leaf)
    inputs, outputs = sides(leaf, view) if view else (0, 1)
    beside = [(inputs, inputs)] == list(leaf.siblings.values())
    return _in_parts(view, 3) if view and beside and outputs == 3 * inputs else None


def _in_heads(leaf: Leaf, parts: int) -> Outcome:
    """Returns the view of inputs, heads and head sizes; the parts have an axis or share heads."""
    shape, ndim = leaf.layer_shape, len(leaf.layer_shape)
    bias_leads = leaf.bias == shape[: len(leaf.bias)] != shape[ndim - len(leaf.bias) :]
    views = []
    for pair in (axis for axis in range(ndim) if shape[axis] == parts and ndim in (3, 4)):
        *outer, last = (axis for axis in range(ndim) if axis != pair)
        turned = bias_leads if leaf.bias else leaf.outputs_first and pair == 0
        views.append(MatrixAxes(last, outer) if turned else plain.with_heads(leaf, (*outer, last)))
    whole = MatrixAxes(range(ndim - 2), (ndim - 2, ndim - 1))
    if not views and shape[-2] % parts == 0:
        views.append(_in_parts(whole, parts))  # the heads of one part precede those of the next
    return views[0] if shape.count(parts) == 1 and ndim in (3, 4) else (whole, *views)


def gate_up_axis(leaf: Leaf) -> Outcome:
    """Makes an axis of size two a batch axis: (inputs, 2, outputs) or (2, inputs, outputs)."""
    shape, down = leaf.layer_shape, leaf.sibling(_DOWN)
    if len(shape) < 3 or shape.count(2) != 1 or shape[-1] == 2:
        return None
    rows, cols = [axis for axis in range(len(shape)) if shape[axis] != 2][-2:]
    turned = len(down) > 1 and shape[rows] == down[-2] != shape[cols]
    return MatrixAxes(cols, rows) if turned else MatrixAxes(rows, cols)


def gate_and_up(leaf: Leaf) -> Outcome:
    """Splits the outputs of a matrix, or of a stack of experts, into two halves."""
    ndim = len(leaf.layer_shape)
    if ndim not in (2, 3):
        return None
    view = MatrixAxes(*plain.oriented(leaf, (ndim - 2, ndim - 1)))
    down = leaf.sibling(_DOWN, ndim=ndim)
    inputs, outputs = sides(leaf, view)
    if {inputs, outputs / 2} != {*down[-2:]} == {outputs, inputs / 2}:
        view = MatrixAxes(view.cols, view.rows)
    return _halves(leaf, view)


def twice_as_wide(leaf: Leaf) -> Outcome:
    """Splits (inputs, 2 * hidden) in halves if a later sibling has the shape (hidden, inputs)."""
    ndim = len(leaf.layer_shape)
    fits = ndim == 2 or plain.expert_stack(leaf)
    if not fits or matches("weights", leaf.names[-1]):
        return None
    axes = plain.oriented(leaf, (ndim - 2, ndim - 1))
    inputs, outputs = (leaf.layer_shape[axis] for axis in axes)
    beside = leaf.parent if leaf.siblings else leaf.parent[:-1]  # `net_0/proj` and `net_2`
    others = plain.matrices_in(leaf, beside, ndim)
    down = (*leaf.layer_shape[: ndim - 2], outputs / 2, inputs)
    taken = any(shape[-2] == outputs for shape in others.values())
    own = leaf.words[len(beside)]
    later = [shape for name, shape in others.items() if plain.number(name) >= plain.number(own)]
    square = outputs in (inputs, 2 * inputs)  # such a matrix may also precede or follow a plain one
    excluded = taken or square or down not in later or plain.in_attention(leaf)
    return None if excluded else MatrixAxes(*axes, split=2)


def recurrent_gates(leaf: Leaf) -> Outcome:
    """Splits the outputs into three or four gates, each as wide as the recurrent kernel's input.

    Haiku's LSTM has one `linear` for the concatenated input and hidden state.
    """
    view = matrix(leaf) or plain.flattened_patch(leaf)
    if view is None:
        return None
    keras = leaf.tree.leaves.get((*leaf.words[:-1], "recurrent_kernel"))
    hidden = leaf if matches(_HIDDEN, leaf.layer) else keras
    kernel = hidden.layer_shape if hidden else leaf.sibling(_HIDDEN)
    width = kernel[1 if view.cols == (0,) else -2] if kernel else 0
    outputs = leaf.layer_shape[view.cols[0]]
    gates = outputs / width if width else 4 * (leaf.layer == "linear" and outputs % 4 == 0)
    return _in_parts(view, int(gates)) if gates in (3, 4) else None


def _in_parts(view: MatrixAxes, split: Any) -> MatrixAxes:
    return dataclasses.replace(view, split=split)


def _halves(leaf: Leaf, view: MatrixAxes) -> MatrixAxes | None:
    return _in_parts(view, 2) if sides(leaf, view)[1] % 2 == 0 else None
