"""Views of arrays that hold one matrix. Every function takes a leaf and returns an outcome.

Axes are those of one layer; `as_stored` adds the stack axes. None means that the shape or the
siblings contradict the view, several candidate views that they do not decide.
"""

from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf
from muon_jax.routing._rule import Outcome
from muon_jax.trees._patterns import Words, matches
from muon_jax.views._matrix_axes import MatrixAxes, Shape

_QUERY = f"{vocabulary.ATTENTION_INPUT},{vocabulary.FUSED_QUERY_KEY_VALUE}"


def matrix(leaf: Leaf) -> MatrixAxes | None:
    """Returns the view of one input and one output axis; all other axes have size one."""
    return MatrixAxes(*oriented(leaf, leaf.axes)) if len(leaf.axes) == 2 else None


def oriented(leaf: Leaf, axes: Shape) -> Shape:
    """Returns the input axis and the output axis, as the bias or else the name tells them."""
    first, second = (leaf.layer_shape[axis] for axis in axes)
    outputs_first = leaf.outputs_first
    if first != second and leaf.bias[-1:] in ((first,), (second,)):
        outputs_first = leaf.bias[-1] == first
    return axes[::-1] if outputs_first else axes


def low_rank_factor(leaf: Leaf) -> Outcome:
    """Returns the view of a LoRA factor: (inputs…, rank) or (rank, outputs…)."""
    axes, is_first = leaf.axes, leaf.layer.endswith("a")
    other = leaf.sibling(leaf.layer[:-1] + ("b" if is_first else "a"))
    first, second = (leaf.layer_shape, other) if is_first else (other, leaf.layer_shape)
    if len(axes) == 2 or leaf.outputs_first or not other or first[-1] != second[0]:
        return matrix(leaf)
    if first[-1:] == second[1:2] and first[0] == second[0]:
        return None  # the first axis may also be a stack of layers
    return MatrixAxes(axes[:-1], axes[-1]) if is_first else MatrixAxes(axes[0], axes[1:])


def expert_stack(leaf: Leaf) -> Outcome:
    """Returns the view of (experts, inputs, outputs), below `experts` or beside a router."""
    if len(leaf.layer_shape) != 3:
        return None
    named = f"{vocabulary.EXPERTS},{vocabulary.ATTENTION}"
    nearest = [name for name in leaf.layer_path if matches(named, name)][-1:]
    router = leaf.sibling("*router*,gate,gating,w_gate,wg", ndim=2)
    experts, *sides_of_one = leaf.layer_shape  # a router is (inputs, experts), or turned
    fits = any((experts, size) in (router, router[::-1]) for size in sides_of_one)
    routed = fits and not in_attention(leaf)
    is_expert = routed or any(matches(vocabulary.EXPERTS, name) for name in nearest)
    return MatrixAxes(*oriented(leaf, (1, 2))) if is_expert else None


def attention_input(leaf: Leaf) -> Outcome:
    """Returns the view of (inputs, heads, size) or (heads, inputs, size)."""
    return with_heads(leaf, leaf.axes) if len(leaf.axes) == 3 and not leaf.outputs_first else None


def with_heads(leaf: Leaf, axes: Shape) -> MatrixAxes:
    """Returns the view of two axes, or of inputs and heads whose order the output layer shows."""
    if len(axes) == 2:
        return MatrixAxes(*axes)
    first, second, last = axes
    width = leaf.sibling(vocabulary.ATTENTION_OUTPUT, ndim=3)[-1:]
    if (leaf.layer_shape[second],) == width != (leaf.layer_shape[first],):
        return MatrixAxes(rows=second, cols=(first, last))
    return MatrixAxes(rows=first, cols=(second, last))


def attention_output(leaf: Leaf) -> Outcome:
    """Returns the view of (heads, size, outputs), within attention or beside a query."""
    fits = len(leaf.axes) == 3 and not leaf.outputs_first and in_attention(leaf)
    return MatrixAxes(leaf.axes[:2], leaf.axes[2]) if fits else None


def flattened_patch(leaf: Leaf) -> MatrixAxes | None:
    """Returns the view of (space…, inputs, outputs), or of (outputs, inputs, space…) in torch."""
    if len(leaf.layer_shape) < 3:
        return None
    outputs = channels(leaf)[1]
    rows = [axis for axis in range(len(leaf.layer_shape)) if axis != outputs]
    return MatrixAxes(rows, outputs)


def channels(leaf: Leaf) -> tuple[int, int]:
    """Returns the axes of the inputs and outputs of a filter."""
    ndim = len(leaf.layer_shape)
    inputs, outputs = (1, 0) if space_is_last(leaf) else (ndim - 2, ndim - 1)
    turned = leaf.bias == (leaf.layer_shape[inputs],) != (leaf.layer_shape[outputs],)
    return (outputs, inputs) if turned else (inputs, outputs)  # a transposed convolution


def filter_shaped(leaf: Leaf) -> Outcome:
    """Returns the view of a filter with one pixel or two or more equal sides: (3, 3), (1, 3, 3)."""
    space = leaf.layer_shape[2:] if space_is_last(leaf) else leaf.layer_shape[:-2]
    shaped = _is_space(space) and (len(space) > 1 or space == (1,))
    return flattened_patch(leaf) if shaped else None


def space_is_last(leaf: Leaf) -> bool:
    """Returns whether the spatial axes of a filter come last, by the bias or else by the name.

    The shape overrules the name if the sides are equal only in the other order, and longer than
    the number of channels in this one.
    """
    shape, named = leaf.layer_shape, leaf.outputs_first
    if shape[0] != shape[-1] and leaf.bias in ((shape[0],), (shape[-1],)):
        return leaf.bias == (shape[0],)
    space, other = (shape[2:], shape[:-2]) if named else (shape[:-2], shape[2:])
    longest = max(shape[:2] if named else shape[-2:])
    odd = not _is_space(space) and max(space) > longest
    return not named if odd and len(set(other)) == 1 else named


def _is_space(sizes: Shape) -> bool:
    return len(set(sizes) - {1}) <= 1


def by_bias(leaf: Leaf) -> Outcome:
    """Returns the view whose outputs are the axes of the bias, and whose inputs are the others."""
    shape, ndim, outputs = leaf.layer_shape, len(leaf.layer_shape), len(leaf.bias)
    if ndim < 3 or not 0 < outputs < ndim:
        return None
    if shape[-outputs:] == leaf.bias:
        if ndim == 3 and outputs == 2 and shape[0] == shape[1]:
            return candidates(leaf)  # may also be a stack of layers, each with its own bias
        return MatrixAxes(rows=range(ndim - outputs), cols=range(ndim - outputs, ndim))
    leads = shape[:outputs] == leaf.bias
    return MatrixAxes(rows=range(outputs, ndim), cols=range(outputs)) if leads else None


def candidates(leaf: Leaf) -> tuple[MatrixAxes, ...]:
    """Returns all views: a stack of matrices, or one matrix with inputs up to any axis."""
    axes = leaf.axes
    cuts = [(axes[:cut], axes[cut:]) for cut in range(len(axes) - 1, 0, -1)]
    pairs = [(axes[-2:-1], axes[-1:]), *cuts] if len(axes) > 2 else cuts
    if leaf.outputs_first:
        pairs = [(cols, rows) for rows, cols in [pairs[0], *reversed(pairs[1:])]]
    return tuple(MatrixAxes(rows, cols) for rows, cols in pairs)


def in_attention(leaf: Leaf) -> bool:
    """Returns whether a layer belongs to attention, by its path or a sibling query."""
    named = any(matches(vocabulary.ATTENTION, name) for name in leaf.layer_path)
    return named or bool(leaf.sibling(_QUERY))


def sides(leaf: Leaf, view: MatrixAxes | None = None) -> tuple[int, int]:
    """Returns the inputs and outputs of a plain matrix."""
    rows, cols = (view.rows[0], view.cols[0]) if view else oriented(leaf, leaf.axes)
    return leaf.layer_shape[rows], leaf.layer_shape[cols]


def matrices_in(leaf: Leaf, module: Words, ndim: int = 2) -> dict[str, Shape]:
    """Returns (batch…, inputs, outputs) of the other layers of a module, by their names."""
    tables = leaf.tree.tables.values()
    return {
        name: (*shape[:-2], shape[-1], shape[-2]) if leaf.outputs_first else shape
        for name, shape in leaf.layers_in(module).items()
        if len(shape) == ndim and shape not in tables
    }


def number(name: str) -> int:
    """Returns the number at the end of a name, which orders layers; 0 if there is none."""
    return int(name[len(name.rstrip("0123456789")) :] or 0)
