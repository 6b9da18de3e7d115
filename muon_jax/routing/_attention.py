"""How the layers of attention read as matrices: heads; query, key and value in one array."""

import dataclasses
from collections.abc import Callable

from muon_jax.routing._context import Leaf
from muon_jax.routing._convolutions import flattened_patch
from muon_jax.routing._plain import (
    QUERY,
    bias_leads,
    halves,
    in_attention,
    in_parts,
    matrix,
    oriented,
    several,
)
from muon_jax.routing._rule import Outcome
from muon_jax.routing._vocabulary import ATTENTION_INPUT, ATTENTION_OUTPUT
from muon_jax.views._matrix_axes import MatrixAxes, Shape, Split, without_ones


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
    return flattened_patch(leaf) if leaf.core[0] == 1 else _with_heads(leaf, (0, 1, 2))


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
    if not in_attention(leaf):
        return None
    if leaf.bias_is_hidden and not leaf.beside(QUERY):
        return several(leaf)
    return MatrixAxes(rows=(0, 1), cols=2)


def fused_query_key_value(leaf: Leaf) -> Outcome:
    return _pointwise(leaf, _fused_columns) or _fused_heads(leaf, 3)


def fused_key_value(leaf: Leaf) -> Outcome:
    return _pointwise(leaf, halves) or _fused_heads(leaf, 2)


def fused_in_every_head(leaf: Leaf) -> Outcome:
    """Some models lay q, k and v down whole, others head by head: the shape is the same."""
    view = matrix(leaf)
    return (in_parts(view, 3), view) if view else _fused_heads(leaf, 3)


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
    thirds = (in_parts(view, 3),) if leaf.core[view.cols[0]] % 3 == 0 else ()
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
        turned = bias_leads(leaf) if leaf.bias else leaf.outputs_first and pair == 0
        readings.append(either[::-1] if turned else either)
    views = [likely for likely, _ in readings]
    if len(views) == 1:
        (view,) = views
        if len(view.cols) == 1 or _is_confirmed(leaf, view):
            return view
        if leaf.bias_is_hidden:
            return readings[0]  # which it might turn round
        stacked = leaf.tree.hidden and pairs == [2]  # (layers, inputs, 3, outputs)
        return (view, MatrixAxes(rows=1, cols=3)) if stacked else view
    whole = MatrixAxes(rows=range(ndim - 2), cols=(ndim - 2, ndim - 1))
    heads, size = (core[axis] for axis in whole.cols)
    if not views and heads % parts == 0:
        views.append(in_parts(whole, parts))
    if not views and size % parts == 0:
        views.append(in_parts(whole, Split((size // parts,) * parts, interleaved=True)))
    return whole, *views


def _is_confirmed(leaf: Leaf, view: MatrixAxes) -> bool:
    """Tells whether the output layer is as wide as the inputs."""
    output = leaf.beside(ATTENTION_OUTPUT)
    width = output[0 if leaf.outputs_first else -1] if output else None
    return leaf.core[view.rows[0]] == width


def _with_heads(leaf: Leaf, axes: Shape | list[int]) -> MatrixAxes:
    """Two axes, or three of which the last two, or the first and last, are heads and their size."""
    if len(axes) == 2:
        return MatrixAxes(rows=axes[0], cols=axes[1])
    first, second, last = axes
    output = leaf.beside(ATTENTION_OUTPUT, ndim=3)
    if output and leaf.core[second] == output[-1] != leaf.core[first]:
        return MatrixAxes(rows=second, cols=(first, last))
    return MatrixAxes(rows=first, cols=(second, last))
