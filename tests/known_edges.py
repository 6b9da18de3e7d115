"""Layers at the edges of the default rules: where a name or shape nearly means something else.

Expected are the view, `-` for the fallback, or `?` for an error that shows the readings.
"""

from muon_jax.views._matrix_axes import MatrixAxes, Split

EDGES = {
    "heads in groups that share a key": {
        "attn/query/kernel": ((16, 2, 3, 4), "0|1,2,3"),
        "attn/key/kernel": ((16, 2, 4), "0|1,2"),
        "attn/value/kernel": ((16, 2, 4), "0|1,2"),
        "attn/out/kernel": ((2, 3, 4, 16), "0,1,2|3"),
    },
    "heads in one group": {
        "attn/query/kernel": ((16, 1, 3, 4), "0|1,2,3"),
        "attn/key/kernel": ((16, 1, 4), "0|1,2"),
        "attn/out/kernel": ((1, 3, 4, 16), "0,1,2|3"),
    },
    "heads in groups, as many as there are sizes, of scanned layers": {
        "layers/attn/q": ((5, 16, 2, 4, 4), "1|2,3,4"),
        "layers/attn/k": ((5, 16, 2, 4), "1|2,3"),
        "layers/attn/o": ((5, 2, 4, 4, 16), "1,2,3|4"),
    },
    "heads in groups, or a stack, beside an output with heads flat": {
        "attn/q": ((24, 2, 3, 4), "?"),
        "attn/k": ((24, 2, 4), "0|1,2"),
        "attn/o": ((24, 24), "0|1"),
    },
    "as many layers as inputs": {
        "attn/query/kernel": ((8, 8, 2, 4), "1|2,3"),
        "attn/key/kernel": ((8, 8, 2, 4), "1|2,3"),
        "attn/out/kernel": ((8, 2, 4, 8), "1,2|3"),
    },
    "a bias by heads that is called b": {
        "attn/query/w": ((8, 2, 4), "0|1,2"),
        "attn/query/b": ((2, 4), "-"),
    },
    "layers that are called after a norm, and a norm": {
        "norm_proj/weight": ((48, 8), "1|0"),
        "norm_proj/bias": ((48,), "-"),
        "norm/weight": ((48,), "-"),
        "norm/bias": ((48,), "-"),
    },
    "scanned layers that are called after a norm, and a norm": {
        "norm_proj/weight": ((5, 48, 8), "2|1"),
        "norm_proj/bias": ((5, 48), "-"),
        "norm/weight": ((5, 8), "-"),
        "norm/bias": ((5, 8), "-"),
    },
    "low-rank changes of torch's convolutions": {
        "conv/lora_down/weight": ((2, 8, 3, 3), "1,2,3|0"),
        "conv/lora_up/weight": ((16, 2, 1, 1), "1,2,3|0"),
    },
    "a low-rank change whose rank is the width of the input and the number of heads": {
        "attn/q_einsum/lora/a": ((4, 4), "0|1"),
        "attn/q_einsum/lora/b": ((4, 4, 6), "0|1,2"),
    },
    "filters of unequal sides": {
        "speech/Conv_0/kernel": ((41, 11, 1, 32), "-"),  # of one channel
        "speech/Conv_1/kernel": ((21, 11, 32, 32), "0,1,2|3"),
        "haiku/conv2_d/w": ((3, 5, 64, 64), "0,1,2|3"),
        "torch/conv/weight": ((32, 32, 21, 11), "1,2,3|0"),
        "slim/conv/weights": ((3, 3, 64, 128), "0,1,2|3"),
        "slim/conv_1x1/weights": ((1, 1, 64, 128), "0,1,2|3"),
        "slim/conv_out/weights": ((3, 3, 128, 64), "0,1,2|3"),
        "as_wide_as_deep/conv/kernel": ((3, 5, 5, 5), "0,1,2|3"),
    },
    "filters with outputs first, by their shape": {
        "torch/conv/kernel": ((16, 32, 3, 3), "1,2,3|0"),
        "torch/video/conv/kernel": ((32, 32, 3, 3, 3), "1,2,3,4|0"),
    },
    "filters with outputs first, or not, by their bias": {
        "layers/0/weight": ((8, 3, 5), "1,2|0"),
        "layers/0/bias": ((8, 1), "-"),
        "as_long_as_wide/conv/kernel": ((8, 3, 8), "0,1|2"),
        "as_long_as_wide/conv/bias": ((8,), "-"),
    },
    "fused heads with outputs first": {
        "by_name/attn/Wqkv/weight": ((3, 4, 16, 64), "3|1,2"),
        "by_bias/attn/c_attn/weight": ((3, 4, 16, 64), "3|1,2"),
        "by_bias/attn/c_attn/bias": ((3, 4, 16), "-"),
        "inputs_first/attn/c_attn/weight": ((64, 3, 4, 16), "0|2,3"),
        "inputs_first/attn/c_attn/bias": ((3, 4, 16), "-"),
        "against_name/attn/c_attn/kernel": ((3, 4, 16, 64), "3|1,2"),
        "against_name/attn/c_attn/bias": ((3, 4, 16), "-"),
        "parts_first/attn/c_attn/weight": ((3, 64, 4, 16), "1|2,3"),
        "parts_first/attn/c_attn/bias": ((3, 4, 16), "-"),
        "pairs/attn/kv_proj/weight": ((2, 4, 16, 64), "3|1,2"),
        "thirds/attn/qkv/weight": ((12, 16, 64), "?"),  # perhaps three times four heads
        "thirds/attn/qkv/bias": ((12, 16), "-"),
    },
    "scanned fused heads with outputs first": {
        "norm/scale": ((6, 64), "-"),
        "c_attn/weight": ((6, 3, 4, 16, 64), "4|2,3"),
        "c_attn/bias": ((6, 3, 4, 16), "-"),
    },
    "heads in layers with the names of plain matrices": {
        "attn/w_q": ((64, 4, 16), "0|1,2"),
        "attn/w_out": ((4, 16, 64), "0,1|2"),
        "attention/linear_q/kernel": ((64, 4, 16), "0|1,2"),
        "attention/linear_out/kernel": ((4, 16, 64), "0,1|2"),
        "self_attention/dense/kernel": ((4, 16, 64), "?"),  # four layers, or four heads
    },
    "a scanned encoder of patches without a head": {
        "patch_proj/kernel": ((768, 64), "0|1"),
        "patch_proj/bias": ((64,), "-"),
        "blocks/norm/scale": ((6, 64), "-"),
        "blocks/attn/query/kernel": ((6, 64, 4, 16), "1|2,3"),
    },
    "tables that shift and scale": {
        "scale_shift_table": ((2, 64), "-"),
        "blocks/0/scale_shift_table": ((6, 64), "-"),
    },
    "two matrices called A and B, and B and C": {
        "q/A": ((64, 8), "0|1"),
        "q/B": ((8, 32), "0|1"),
        "ssm/B": ((16, 64), "0|1"),
        "ssm/C": ((64, 10), "0|1"),
        "apart/A": ((5, 6), "0|1"),
        "apart/B": ((7, 8), "-"),  # a gain, since it follows on nothing
        "apart/C": ((9, 10), "0|1"),
        "heads/w": ((64, 2, 4), "0|1,2"),
        "heads/b": ((2, 4), "-"),
    },
    "a norm over two axes": {
        "block/0/weight": ((8, 16), "-"),
        "block/0/bias": ((8, 16), "-"),
        "layer_norm/weight": ((8, 1, 16), "-"),
        "layer_norm/bias": ((8, 1, 16), "-"),
        "affine/weight": ((8, 1, 16), "-"),
        "affine/bias": ((8, 1, 16), "-"),
    },
    "no name, bias or shape that tells": {
        "mix/kernel": ((5, 8, 6), "?"),
        "mix/bias": ((8,), "-"),
        "equal/kernel": ((5, 5, 6), "?"),  # as good as any other sizes
    },
    "experts with outputs first": {
        "experts/up/weight": ((6, 32, 8), "2|1"),
        "fused/experts/gate_up/weight": ((6, 64, 8), "2|1/2"),
        "fused/experts/down/weight": ((6, 8, 32), "2|1"),
    },
    "qkv fused, and what stands beside it": {
        "transposed/c_attn/kernel": ((24, 8), "1|0/3"),
        "narrow/qkv/weight": ((8, 24), "?"),  # 24 inputs, by its name
        "biased/qkv/kernel": ((24, 8), "?"),  # 24 inputs, by its bias
        "biased/qkv/bias": ((8,), "-"),
        "apart/qkv/kernel": ((8, 24), "0|1/3"),
        "apart/out/kernel": ((2, 4, 8), "0,1|2"),
        "alike/qkv/kernel": ((8, 12), "?"),  # one projection for all three
        "alike/out/kernel": ((12, 8), "0|1"),
        "axis/query_key_value/kernel": ((8, 3, 2, 4), "0|2,3"),
    },
    "keys and values of a narrow context": {
        "cross/key/kernel": ((6, 8, 4), "0|1,2"),
        "cross/out/kernel": ((32, 8), "0|1"),
        "latent/kv/kernel": ((8, 9), "0|1"),  # odd: one latent for both
    },
    "gate and up on an axis of two": {
        "mlp/wi/kernel": ((8, 2, 3), "0|2"),
        "moe/experts/gate_up/kernel": ((8, 8, 2, 32), "1|3"),  # as many experts as features
        "moe/experts/down/kernel": ((8, 32, 8), "1|2"),
    },
    "gate and up side by side": {
        "torch/gate_up_proj/weight": ((64, 8), "1|0/2"),
        "torch/down_proj/weight": ((8, 32), "1|0"),
        "experts/gate_up/kernel": ((6, 8, 64), "1|2/2"),
        "experts/down/kernel": ((6, 32, 8), "1|2"),
        "cell/gate_update/kernel": ((8, 4), "0|1"),
        "low_rank/gate_up_proj/kernel": ((8, 64), "0|1/2"),
        "low_rank/gate_down/kernel": ((8, 4), "0|1"),
        "square/gate_up/kernel": ((8, 8), "0|1/2"),
        "square/down/kernel": ((4, 8), "0|1"),
        "odd/gate_up/kernel": ((8, 9), "0|1"),
    },
    "a shared expert beside the others": {
        "moe/gate_up/kernel": ((8, 32), "0|1/2"),
        "moe/down/kernel": ((16, 8), "0|1"),
        "moe/gate_up_experts/kernel": ((6, 8, 64), "1|2/2"),
        "moe/down_experts/kernel": ((6, 32, 8), "1|2"),
    },
    "gate and up by their width alone": {
        "fc1/kernel": ((8, 32), "0|1/2"),
        "fc2/kernel": ((16, 8), "0|1"),
        "torch/w12/weight": ((64, 8), "1|0/2"),
        "torch/w3/weight": ((8, 32), "1|0"),
        "t5/wi/kernel": ((8, 32), "0|1/2"),
        "t5/wo/kernel": ((16, 8), "0|1"),
        "diffusers/ff/net_0/proj/kernel": ((8, 32), "0|1/2"),
        "diffusers/ff/net_2/kernel": ((16, 8), "0|1"),
        "diffusers/torch/net/0/proj/weight": ((32, 8), "1|0/2"),
        "diffusers/torch/net/2/weight": ((8, 16), "1|0"),
        "diffusers/gelu/net_0/proj/kernel": ((8, 32), "0|1"),
        "diffusers/gelu/net_2/kernel": ((32, 8), "0|1"),
        "plain/c_fc/kernel": ((8, 32), "0|1"),
        "plain/c_proj/kernel": ((32, 8), "0|1"),
        "filters/fc1/kernel": ((3, 8, 32), "0,1|2"),
        "filters/fc1/bias": ((32,), "-"),
        "filters/fc2/kernel": ((3, 16, 8), "0,1|2"),
        "filters/fc2/bias": ((8,), "-"),
        "beside_attention/out_proj/weight": ((8, 8), "1|0"),
        "beside_attention/fc1/weight": ((16, 8), "1|0"),
        "beside_attention/fc2/weight": ((8, 16), "1|0"),
        "bare/w_o": ((8, 8), "0|1"),
        "bare/w_in": ((8, 16), "0|1"),
        "bare/w_out": ((16, 8), "0|1"),
        "narrower/fc1/kernel": ((8, 32), "0|1"),
        "narrower/fc2/kernel": ((16, 4), "0|1"),  # no way back
        "experts/wi/kernel": ((6, 8, 64), "1|2/2"),
        "experts/wo/kernel": ((6, 32, 8), "1|2"),
    },
    "inputs with a gate and without": {
        "gated/in_proj/weight": ((32, 8), "1|0/2"),
        "gated/out_proj/weight": ((8, 16), "1|0"),
        "plain/in_proj/kernel": ((8, 16), "0|1"),
        "plain/out_proj/kernel": ((16, 8), "0|1"),
        "narrow/in_proj/kernel": ((8, 4), "0|1"),
        "narrow/query/kernel": ((4, 2, 4), "0|1,2"),
        "narrow/out_proj/kernel": ((2, 4, 8), "0,1|2"),
    },
    "a convolutional LSTM on sequences": {
        "ih/kernel": ((3, 6, 16), "0,1|2/4"),
        "hh/kernel": ((3, 4, 16), "0,1|2/4"),
    },
    "a convolutional GRU with outputs first": {
        "cell/ih/weight": ((12, 6, 3, 3), "1,2,3|0/3"),
        "cell/hh/weight": ((12, 4, 3, 3), "1,2,3|0/3"),
    },
    "a linear layer after an LSTM of Haiku": {
        "lstm_tagger/lstm/linear/w": ((12, 16), "0|1/4"),
        "lstm_tagger/linear/w": ((4, 10), "0|1"),
    },
}

READINGS = {
    # what it is: (its layer, the array in question first, all that it can be)
    "three squares, perhaps head by head": (
        {"attn/query_key_value/kernel": (8, 24)},
        [MatrixAxes(-2, -1, split=3), MatrixAxes(-2, -1)],
    ),
    "perhaps three of one width": (
        {"attn/qkv/kernel": (8, 15)},
        [MatrixAxes(-2, -1), MatrixAxes(-2, -1, split=3)],
    ),
    "not three of one width": ({"attn/qkv/kernel": (8, 16)}, [MatrixAxes(-2, -1)]),
    "perhaps three times two heads": (
        {"attn/qkv/kernel": (8, 6, 4)},
        [MatrixAxes(-3, (-2, -1)), MatrixAxes(-3, (-2, -1), split=3)],
    ),
    "perhaps three of four in either head": (
        {"attn/qkv/kernel": (8, 2, 12)},
        [
            MatrixAxes(-3, (-2, -1)),
            MatrixAxes(-3, (-2, -1), split=Split((4, 4, 4), interleaved=True)),
        ],
    ),
    "three along one axis or the other": (
        {"attn/qkv/kernel": (8, 3, 3)},
        [MatrixAxes(-3, (-2, -1)), MatrixAxes(-3, -1), MatrixAxes(-3, -2)],
    ),
}
