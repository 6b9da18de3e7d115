"""How layers with gates read as matrices: gate and up, input and gate, a recurrence's gates."""

from muon_jax.routing._context import Leaf
from muon_jax.routing._convolutions import flattened_patch
from muon_jax.routing._plain import expert_stack, halves, in_parts, matrix, may_feed, oriented
from muon_jax.routing._rule import Outcome
from muon_jax.trees._patterns import matches
from muon_jax.views._matrix_axes import MatrixAxes, Shape

HIDDEN_TO_HIDDEN = "dense_h,w_h,hh,h2h,weight_hh*,recurrent_kernel"
DOWN = "*down*,wo,w2,w_out,w_o,output,out*,linear,fc2,c_proj"


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
    as_named, turned = {inputs, outputs / 2}, {outputs, inputs / 2}
    if down and as_named != {*down[-2:]} == turned:
        view = MatrixAxes(view.cols, view.rows)
    return in_parts(view, 2) if leaf.core[view.cols[0]] % 2 == 0 else None


def gated_input(leaf: Leaf) -> Outcome:
    """Twice as many outputs as the output layer beside it has inputs."""
    output = leaf.beside("out_proj,output_proj", ndim=2)
    if len(leaf.core) != 2 or not output:
        return None
    inner = output[1] if leaf.outputs_first else output[0]
    return halves(leaf) if leaf.core[oriented(leaf).cols[0]] == 2 * inner else None


def gated_up(leaf: Leaf) -> Outcome:
    """Twice as many outputs as the way down has inputs, which leads back to its own inputs."""
    down = leaf.beside("w3" if leaf.layer == "w12" else DOWN, ndim=len(leaf.core))
    lead = len(leaf.core) - 2
    if not down or lead not in (0, 1):
        return None
    if may_feed(leaf) if lead == 0 else expert_stack(leaf) is None:
        return None
    return _led_back(leaf, down)


def gated_net(leaf: Leaf) -> Outcome:
    """As `gated_up`, where the way down stands two numbers further: `net_0/proj` and `net_2`."""
    *place, first, _ = leaf.place
    down = leaf.tree.shapes.get((*place, first.replace("0", "2"), leaf.words[-1]))
    return _led_back(leaf, down) if len(leaf.core) == 2 and down and len(down) == 2 else None


def _led_back(leaf: Leaf, down: Shape) -> MatrixAxes | None:
    """Splits a layer in two where its way down takes half of its outputs to its inputs."""
    lead = len(leaf.core) - 2
    view = oriented(leaf, lead)
    inner, outputs = reversed(down[lead:]) if leaf.outputs_first else down[lead:]
    fits = leaf.core[view.rows[0]] == outputs and leaf.core[view.cols[0]] == 2 * inner
    return in_parts(view, 2) if fits and leaf.core[:lead] == down[:lead] else None


def recurrent_gates(leaf: Leaf) -> Outcome:
    """Three or four gates over one hidden state, whose width the recurrent kernel shows."""
    view = matrix(leaf) or flattened_patch(leaf)
    kernel = leaf.core if matches(HIDDEN_TO_HIDDEN, leaf.layer) else leaf.beside(HIDDEN_TO_HIDDEN)
    kernel = kernel or leaf.tree.shapes.get((*leaf.place, "recurrent_kernel"))  # Keras
    if view is None or kernel is None:
        return None
    hidden = min(kernel) if len(kernel) == 2 else kernel[1 if view.cols == (0,) else -2]
    gates, rest = divmod(leaf.core[view.cols[0]], hidden)
    return in_parts(view, gates) if gates in (3, 4) and not rest else None


def four_gates(leaf: Leaf) -> Outcome:
    """Input and hidden state joined along the inputs, as Haiku stores an LSTM."""
    view = matrix(leaf)
    return in_parts(view, 4) if view and leaf.core[view.cols[0]] % 4 == 0 else None
