"""How the filters of convolutions read as matrices: a flattened patch is their input."""

from muon_jax.routing._context import Leaf
from muon_jax.routing._plain import several
from muon_jax.routing._rule import FALLBACK, Outcome
from muon_jax.routing._vocabulary import ATTENTION_INPUT
from muon_jax.trees._patterns import matches
from muon_jax.views._matrix_axes import MatrixAxes, Shape


def convolution(leaf: Leaf) -> Outcome:
    """(space…, inputs, outputs), or (outputs, inputs, space…) as torch stores it.

    Where a mask hides the bias, which might turn the layer round, or what might show that a filter
    of unequal sides is a stack of filters, the reading is one of several.
    """
    view = flattened_patch(leaf)
    masked = view and leaf.tree.hidden and not _is_space(_space(leaf))
    if view and (masked or leaf.bias_is_hidden):
        return tuple(dict.fromkeys((view, *_all_filters(leaf), *several(leaf))))
    return view


def _all_filters(leaf: Leaf) -> list[MatrixAxes]:
    """One filter stored either way round, a transposed one, and a stack of filters."""
    axes = range(len(leaf.core))
    outputs = [axes[0], axes[1]] if leaf.outputs_first else [axes[-1], axes[-2]]
    filters = [(axes, cols) for cols in (*outputs, axes[-1], axes[0])]
    if len(axes) > 3:
        filters.append((axes[1:], axes[1] if leaf.outputs_first else axes[-1]))
    return [MatrixAxes([axis for axis in among if axis != cols], cols) for among, cols in filters]


def flattened_patch(leaf: Leaf) -> MatrixAxes | None:
    if len(leaf.core) < 3:
        return None
    axes = range(len(leaf.core))
    if _space_is_last(leaf):
        outputs, inputs, *space = axes
    else:
        *space, inputs, outputs = axes
    if leaf.bias == (leaf.core[inputs],) != (leaf.core[outputs],):
        inputs, outputs = outputs, inputs  # transposed, as torch stores it, or `transpose_kernel`
    return MatrixAxes(rows=sorted((*space, inputs)), cols=outputs)


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
