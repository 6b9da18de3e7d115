"""Stacks of layers by what shows them, one witness a tree, and where each parameter then goes.

A `mix` has no known name, so that its view shows how far a witness speaks; with none it is asked
for. Expected are the view, `-` for the fallback, or `?` for an error that shows the readings.
"""

SHOWN = {
    "by the gain of a norm": {
        "tower/norm/scale": ((3, 8), "-"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
        "mix/kernel": ((3, 8, 16), "?"),
        "embed/embedding": ((99, 8), "-"),
    },
    "by a norm without a layer": {
        "tower/attn_norm": ((3, 8), "-"),
        "tower/mix": ((3, 8, 16), "1|2"),
    },
    "by a norm beside vectors and scalars of every layer": {
        "tower/norm/scale": ((3, 8), "-"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
        "tower/other/bias": ((3, 16), "-"),
        "tower/alpha": ((3,), "-"),
    },
    "by a norm of stacks of stacks, with outputs first": {
        "tower/norm/weight": ((2, 3, 8), "-"),
        "tower/mix/weight": ((2, 3, 16, 8), "3|2"),
        "tower/mix/bias": ((2, 3, 16), "-"),
    },
    "by a norm of an inner stack, for itself alone": {
        "tower/inner/norm/scale": ((2, 3, 8), "-"),
        "tower/inner/mix/kernel": ((2, 3, 8, 16), "2|3"),
        "tower/other/mix/kernel": ((2, 5, 8, 16), "?"),
    },
    "by a dense layer": {
        "tower/dense/kernel": ((3, 8, 8), "1|2"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
    },
    "by a dense layer, but not for what a norm of that width parts from it": {
        "tower/dense/w": ((8, 8, 6), "1|2"),
        "tower/norm/scale": ((8,), "-"),
        "tower/mix/w": ((8, 16, 6), "?"),
    },
    "by a dense layer of stacks of stacks": {
        "tower/dense/kernel": ((2, 3, 8, 16), "2|3"),
        "tower/mix/kernel": ((2, 3, 8, 16), "2|3"),
    },
    "by a dense layer with one output": {
        "tower/dense/kernel": ((3, 8, 1), "-"),
        "tower/dense/bias": ((3, 1), "-"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
    },
    "by a dense layer without a kernel": {
        "tower/w1": ((3, 8, 32), "1|2"),
        "tower/mix": ((3, 8, 16), "1|2"),
    },
    "by a dense layer, the bias beside it not its own": {
        "tower/w1": ((3, 8, 32), "1|2"),
        "tower/w2": ((3, 32, 8), "1|2"),
        "tower/bias": ((8,), "-"),
    },
    "by gate and up": {
        "tower/wi/kernel": ((3, 8, 2, 32), "1|3"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
    },
    "by queries with heads": {
        "tower/attn/query/kernel": ((3, 8, 2, 4), "1|2,3"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
    },
    "by the output of attention with heads": {
        "tower/attn/out/kernel": ((3, 2, 4, 8), "1,2|3"),
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
    },
    "by queries and outputs that fit": {
        "model/tower/attn/gate/kernel": ((3, 8, 2), "1|2"),
        "model/tower/attn/k/kernel": ((3, 8, 12), "1|2"),
        "model/tower/attn/o/kernel": ((3, 12, 8), "1|2"),
        "model/tower/attn/q/kernel": ((3, 8, 12), "1|2"),
        "model/tower/mix/kernel": ((3, 8, 16), "1|2"),
        "model/embed/embedding": ((99, 8), "-"),
    },
    "by a bias": {
        "tower/mix/kernel": ((3, 8, 16), "1|2"),
        "tower/mix/bias": ((3, 16), "-"),
    },
    "by a bias in Haiku": {
        "tower/mix/w": ((3, 8, 16), "1|2"),
        "tower/mix/b": ((3, 16), "-"),
    },
    "by a bias with an axis of one": {
        "tower/conv/weight": ((3, 16, 8, 5), "2,3|1"),
        "tower/conv/bias": ((3, 16, 1), "-"),
    },
    "by a container": {
        "model/layers/mix/kernel": ((3, 8, 16), "1|2"),
        "model/layers/merge/kernel": ((3, 16, 8), "1|2"),
        "model/embed/embedding": ((99, 8), "-"),
    },
    "by a container of bare arrays": {
        "layers/mix": ((3, 8, 16), "1|2"),
        "embed": ((99, 8), "-"),
    },
    "along the second axis, around an ensemble": {
        "layers/norm/scale": ((8, 3), "-"),
        "layers/mix/kernel": ((8, 3, 16), "0|2"),
        "layers/ensemble/norm/scale": ((5, 3, 8), "-"),
        "layers/ensemble/dense/kernel": ((5, 3, 8, 32), "2|3"),
    },
}

NOT_SHOWN = {
    "an array alone": {"w": ((2, 3, 4), "?")},
    "by a dense layer whose bias has two axes": {
        "dense/kernel": ((5, 8, 6), "0|1,2"),
        "dense/bias": ((8, 6), "-"),
    },
    "by a dense layer whose bias has one": {
        "tower/linear/kernel": ((5, 8, 6), "0,1|2"),
        "tower/linear/bias": ((6,), "-"),
    },
    "by a dense layer whose bias has one, in Haiku": {
        "tower/linear/w": ((5, 8, 6), "0,1|2"),
        "tower/linear/b": ((6,), "-"),
    },
    "by filters of what is called dense": {
        "a/fc/kernel": ((3, 3, 8, 16), "0,1,2|3"),
        "b/fc/weight": ((16, 8, 3, 3), "1,2,3|0"),
        "c/fc/weight": ((16, 8, 1, 3, 3), "1,2,3,4|0"),
    },
    "by outputs that are not of attention": {
        "tower/out/kernel": ((5, 2, 4, 8), "?"),
        "tower/mix/kernel": ((5, 8, 16), "?"),
    },
    "by queries without outputs": {
        "tower/attn/query/kernel": ((8, 2, 4), "0|1,2"),
        "tower/mix/kernel": ((8, 2, 6), "?"),
    },
    "by as many heads as features": {
        "tower/attn/query/kernel": ((8, 8, 4), "0|1,2"),
        "tower/attn/out/kernel": ((8, 4, 8), "0,1|2"),
        "tower/mix/kernel": ((8, 2, 6), "?"),
    },
    "by a bias that has the last axes": {
        "mix/kernel": ((6, 8, 16), "0|1,2"),
        "mix/bias": ((8, 16), "-"),
        "as_many_layers_as_inputs/mix/kernel": ((8, 8, 16), "?"),
        "as_many_layers_as_inputs/mix/bias": ((8, 16), "-"),
    },
    "by a container of plain matrices": {
        "layers/gate/kernel": ((8, 32), "0|1"),
        "layers/up/kernel": ((8, 32), "0|1"),
    },
    "by a container of filters": {
        "blocks/conv_a/kernel": ((3, 8, 16), "0,1|2"),
        "blocks/conv_b/kernel": ((3, 16, 16), "0,1|2"),
    },
    "by a container of numbered layers": {
        "layers/0/mix/kernel": ((3, 8, 16), "?"),
    },
    "by the gains of heads, beside matrices as wide": {
        "attn/norm/scale": ((2, 8), "-"),
        "attn/down/kernel": ((16, 8), "0|1"),
        "attn/up/kernel": ((32, 8), "0|1"),
    },
}

STACKS = {
    **{f"a stack shown {name}": layers for name, layers in SHOWN.items()},
    **{f"no stack shown {name}": layers for name, layers in NOT_SHOWN.items()},
}
