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

Muon trains weights that map one hidden state to another, as matrices of inputs by outputs. Ordered
rules on the names and shapes of parameters find them, in Flax NNX, Flax Linen, Equinox, Haiku,
Keras, torch-like and plain trees. Check the routes of your model before training; shapes are
enough, so the model need not fit on the machine:

```python
params = jax.eval_shape(model.init, key, inputs)  # or nnx.state(nnx.eval_shape(...), nnx.Param)
print(muon_jax.explain(params, tx))
```

## The rules

The first matching rule decides.

| rule | goes to | why |
|---|---|---|
"""

MORE = """
The rules also recognise:

- **Stacks.** An axis that repeats a layer (`nn.scan`, `nnx.vmap`, pipeline stages, experts) is a
  batch axis. The rules read it from the axis names that Flax stores (`nn.PARTITION_NAME`), or from
  parameters of known rank: a norm's gain of shape (layers, width) shows that its siblings with the
  same leading size are stacked too, along the first axis or the second.
- **Orientation.** `kernel`, `w` and `weights` are stored as (inputs, outputs), `weight` as
  (outputs, inputs); where a weight has a bias, its width decides. The scales `"keller"` and
  `"spectral"` and splits depend on it.
- **Fused axes.** Concatenated queries, keys and values, gate and up, and the gates of recurrent
  cells are separate matrices. For queries, keys and values of unequal width, the sibling output
  layer shows the widths.

## Rules of your own

They have precedence, and the table of `explain` shows them. A rule whose pattern matches no path
raises an error that lists the nearest paths.

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

An array that no rule matches and that has several candidate views, such as an array of three axes
with an unknown name, raises an error that shows the views as rules to write.

Where names and shapes do not decide, the rules assume the most frequent case:

- Fused parts are contiguous, not interleaved by head or column.
- The groups of a grouped convolution are one matrix, unless a rule splits its outputs.
- A filter with one input channel is depthwise, also in the first layer for gray images.
- A layer or a filter with one output goes to AdamW, since its matrix is a vector.
- A two-axis array with an unknown name is a weight, not a table.
- A last layer that no name, table or convolution identifies as the head, such as `Dense_1` or `fc`,
  is a matrix; `muon` then warns at `init`, and `explain` names the candidate.
- A layer is the head if it has as many outputs as the largest embedding has rows and no other layer
  has; or if it has a usual name of a last layer and the shape of a sibling embedding.
- A named head whose outputs have the width of another part's embedding is an input of that part,
  and a matrix.
- The only dense layer at the top of a convolutional network is its head, unless the network
  generates images and the layer expands a latent or a time, as in a generator or a U-Net.
- Of the layers of a head, those followed by another or a norm are matrices, and the last one has
  the logits; in a `policy_head` and the like, only if no layer outside heads is as wide.
- A layer twice as wide as its sibling down projection holds gate and up, one half each.
- A dense layer on pixels or patches goes to Muon; an embedding of tokens, whose rows are trained
  only when their token occurs, does not.

Inside `optax.masked` and `optax.multi_transform` a transformation gets only its own parameters. The
rules then route matrices of two axes by their names, and raise an error for arrays of more axes,
whose views depend on the norms and biases that the mask hides. Give such a chain the views of the
whole tree, `scale_by_muon(axes=muon_jax.matrix_axes(params))`. `muon` gets the whole tree unless
you mask it; then give it the same `axes`. To freeze parameters, [use
rules](../how-to/finetuning.md) instead.

## Differences to routes from the loss

The loss of a model shows what names only suggest, and [trace_axes](../how-to/trace.md) reads it. On
the architectures below and on models made of the layers of Flax, Equinox, Haiku and Keras, names
and loss give every parameter the same route and the same matrices, except these. The tests
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
