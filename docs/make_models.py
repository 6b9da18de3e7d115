"""Writes docs/reference/models.md: where muon_jax sends the parameters of known architectures.

Run `python docs/make_models.py` after a change to the rules, to what is read from a loss, or to the
table that `explain` prints.
"""

import sys
from pathlib import Path

import jax

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from differences import DIFFERENCES  # noqa: E402
from forwards import FORWARDS  # noqa: E402

from muon_jax import Explanation, MatrixAxes, explain, muon  # noqa: E402
from muon_jax.routing._default_rules import FUSED, NOT_FOR_MUON, UNKNOWN, WEIGHTS  # noqa: E402

PAGE = REPOSITORY / "docs" / "reference" / "models.md"

INTRODUCTION = """\
# Models: what goes to Muon

<!-- Written by docs/make_models.py: change that, or the rules, and run it again. -->

Muon wants every weight that maps a hidden state to another as a matrix, inputs by outputs, and
nothing else. `muon_jax` finds out by ordered rules on the names and shapes of parameters, in Flax
NNX, Flax Linen, Equinox, Haiku, Keras, torch-like and plain trees. See what they do to your model
before you train it; shapes are enough, so the model need not fit on the machine:

```python
params = jax.eval_shape(model.init, key, inputs)  # or nnx.state(nnx.eval_shape(...), nnx.Param)
print(muon_jax.explain(params, tx))
```

## The rules

The first rule that applies decides.

| rule | goes to | why |
|---|---|---|
"""

MORE = """
The rules find three things by themselves:

- **Stacks.** An axis that only repeats a layer (`nn.scan`, `nnx.vmap`, pipeline stages, experts) is
  a batch axis. The rules read it from the axis names that Flax keeps (`nn.PARTITION_NAME`), or from
  parameters whose rank is known: a norm's gain of shape (layers, width) shows that everything
  around it that starts with the same size was stacked with it, along the first axis or the second.
- **Orientation.** `kernel`, `w` and `weights` are stored as (inputs, outputs), `weight` as
  (outputs, inputs); where a weight has a bias, its width decides. The scales `"keller"` and
  `"spectral"` and splits depend on it.
- **Fused axes.** Queries, keys and values side by side, gate and up, and the gates of recurrent
  cells are matrices of their own. For queries, keys and values of unequal width, the output layer
  beside them shows the widths.

## Rules of your own

They come first, and the table of `explain` shows them. A rule whose pattern fits no path of the
tree raises an error that lists the nearest paths.

```python
from muon_jax import MatrixAxes, Rule, Split

rules = [
    Rule("*/probe/kernel", "adamw"),  # leave it to AdamW
    Rule("*/query/kernel", MatrixAxes(rows=-3, cols=-1)),  # every head by itself
    Rule("*/gate_up/kernel", MatrixAxes(-2, -1, Split(2, interleaved=True))),
    Rule("*/grouped_conv/kernel", MatrixAxes((-4, -3, -2), -1, split=8)),  # 8 groups
]
tx = muon_jax.muon(3e-4, rules=rules)
```

An array that no rule knows and that has several candidate views, such as a bare array of three
axes, raises an error that shows the views as the lines to write.

Where names and shapes do not decide, the rules assume the most frequent case:

- Fused parts lie one after the other, not head by head or column by column.
- The groups of a grouped convolution are one matrix, unless a rule splits its outputs.
- A filter that sees one channel is depthwise, also in the first layer of a network on gray images.
- A layer or a filter with one output goes to AdamW, since its matrix is a vector.
- A bare two-axis array of an unusual name is a weight, not a table.
- A last layer that no name, table or convolution shows to be the head, such as `Dense_1` or `fc`,
  is a matrix like the others; `muon` then warns at `init`, and `explain` names the candidate.
- A layer is the head if it has as many outputs as the largest embedding has rows and nothing else
  has; or if it has a usual name of a last layer and the shape of an embedding beside it.
- A named head that makes the width of another part's embedding feeds that part, and is a matrix.
- The one dense layer at the top of a convolutional network is its head, unless the network makes
  images and the layer widens a latent or a time, as in a generator or a U-Net.
- Of the layers of a head, those that feed another or a norm are matrices, and the last one is the
  logits; in a `policy_head` and the like, if nothing outside heads is as wide.
- A layer twice as wide as the way down beside it holds gate and up, one half each.
- A dense layer that reads pixels or patches is a map like others, and goes to Muon; an embedding of
  tokens, whose rows are trained only when their token occurs, does not.

Inside `optax.masked` and `optax.multi_transform` a transformation sees its own parameters only. The
rules then read matrices of two axes by their names, and refuse arrays of more axes, whose views
depend on the norms and biases that the mask hides. Give such a chain the views of the whole tree,
`scale_by_muon(axes=muon_jax.matrix_axes(params))`. `muon` sees the whole tree unless you mask it,
and then takes the same `axes`; to freeze parameters, [use rules](../how-to/finetuning.md) instead.

## Where the loss tells otherwise

The loss of a model shows what names only suggest, and [trace_axes](../how-to/trace.md) reads it. On
the architectures below and on models made of the layers of Flax, Equinox, Haiku and Keras, names
and loss send every parameter the same way and view it as the same matrices, except these. The tests
hold this list: a difference that is missing here fails, and so does one that no longer occurs.

| model | parameter | by name | by the loss | why the name cannot tell |
|---|---|---|---|---|
"""

ARCHITECTURES = """
## Architectures

Small versions of each. `*` stands for numbers; axes are those of the array as stored. The column
"by the loss" is what `explain(params, tx, loss=..., args=...)` reads from the loss of the model;
`!=` marks a difference.
"""


def page() -> str:
    """Returns the page as it should be."""
    groups = {
        "AdamW": NOT_FOR_MUON,
        "Muon, split": FUSED,
        "Muon": WEIGHTS,
        "an error, or AdamW": UNKNOWN,
    }
    whys: dict[tuple[str, str], dict[str, None]] = {}
    for label, rules in groups.items():
        for rule in rules:
            whys.setdefault((rule.name, label), {})[rule.why] = None
    lines = [f"| {name} | {label} | {'; '.join(why)} |" for (name, label), why in whys.items()]
    sections = [f"\n### {name}\n\n```text\n{explained(name)}\n```\n" for name in FORWARDS]
    differences = [
        f"| {model} | `{path}` | {shown(named)} | {shown(told)} | {why} |\n"
        for (model, path), (named, told, why) in DIFFERENCES.items()
    ]
    pieces = [INTRODUCTION, "\n".join(lines), "\n", MORE, *differences, ARCHITECTURES, *sections]
    return "".join(pieces)


def explained(name: str) -> Explanation:
    """Explains a model by names and by its loss."""
    loss, params, args = FORWARDS[name]()
    with jax.numpy_rank_promotion("allow"):
        return explain(params, muon(1e-3), loss=loss, args=args)


def shown(axes: MatrixAxes | None) -> str:
    return f"`{axes!r}`" if axes else "AdamW"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
