"""Known architectures: the route of every leaf by the default rules.

Every line is a path, in which `*` stands for all numbers, and its view or the rule that sends it to
the fallback. Parameters without a line are vectors, or biases and gains.
"""

import re
import runpy
from pathlib import Path

import jax
import pytest
from architectures import ARCHITECTURES
from routes import tree_of, view_of

import muon_jax
from muon_jax.routing._route import matrix_axes, route

PINNED = {
    "GPT-2 (NNX)": """
        h/*/attn/c_attn/kernel                             0|1/3
        h/*/attn/c_proj/kernel                             0|1
        h/*/mlp/c_fc/kernel                                0|1
        h/*/mlp/c_proj/kernel                              0|1
        wpe/embedding                                      embedding
        wte/embedding                                      embedding
    """,
    "Llama (NNX)": """
        embed_tokens/embedding                             embedding
        layers/*/mlp/down_proj/kernel                      0|1
        layers/*/mlp/gate_proj/kernel                      0|1
        layers/*/mlp/up_proj/kernel                        0|1
        layers/*/self_attn/k_proj/kernel                   0|1,2
        layers/*/self_attn/o_proj/kernel                   0,1|2
        layers/*/self_attn/q_proj/kernel                   0|1,2
        layers/*/self_attn/v_proj/kernel                   0|1,2
        lm_head/kernel                                     head
    """,
    "Llama, scanned (NNX)": """
        embed_tokens/embedding                             embedding
        layers/mlp/down_proj/kernel                        1|2
        layers/mlp/gate_proj/kernel                        1|2
        layers/mlp/up_proj/kernel                          1|2
        layers/self_attn/k_proj/kernel                     1|2,3
        layers/self_attn/o_proj/kernel                     1,2|3
        layers/self_attn/q_proj/kernel                     1|2,3
        layers/self_attn/v_proj/kernel                     1|2,3
        lm_head/kernel                                     head
    """,
    "Mixtral (NNX)": """
        embed_tokens/embedding                             embedding
        layers/*/mlp/experts/w1                            1|2
        layers/*/mlp/experts/w2                            1|2
        layers/*/mlp/experts/w3                            1|2
        layers/*/mlp/gate/kernel                           router
        layers/*/self_attn/k_proj/kernel                   0|1,2
        layers/*/self_attn/o_proj/kernel                   0,1|2
        layers/*/self_attn/q_proj/kernel                   0|1,2
        layers/*/self_attn/v_proj/kernel                   0|1,2
        lm_head/kernel                                     head
    """,
    "Mixtral, scanned (NNX)": """
        embed_tokens/embedding                             embedding
        layers/mlp/experts/w1                              2|3
        layers/mlp/experts/w2                              2|3
        layers/mlp/experts/w3                              2|3
        layers/mlp/gate/kernel                             router
        layers/self_attn/k_proj/kernel                     1|2,3
        layers/self_attn/o_proj/kernel                     1,2|3
        layers/self_attn/q_proj/kernel                     1|2,3
        layers/self_attn/v_proj/kernel                     1|2,3
        lm_head/kernel                                     head
    """,
    "DeepSeek (NNX)": """
        embed_tokens/embedding                             embedding
        layers/*/mlp/experts/*/down_proj/kernel            0|1
        layers/*/mlp/experts/*/gate_proj/kernel            0|1
        layers/*/mlp/experts/*/up_proj/kernel              0|1
        layers/*/mlp/gate/kernel                           router
        layers/*/mlp/shared_experts/down_proj/kernel       0|1
        layers/*/mlp/shared_experts/gate_proj/kernel       0|1
        layers/*/mlp/shared_experts/up_proj/kernel         0|1
        layers/*/self_attn/kv_a_proj_with_mqa/kernel       0|1
        layers/*/self_attn/kv_b_proj/kernel                0|1
        layers/*/self_attn/o_proj/kernel                   0|1
        layers/*/self_attn/q_a_proj/kernel                 0|1
        layers/*/self_attn/q_b_proj/kernel                 0|1
        lm_head/kernel                                     head
    """,
    "ViT (NNX)": """
        blocks/*/attn/key/kernel                           0|1,2
        blocks/*/attn/out/kernel                           0,1|2
        blocks/*/attn/query/kernel                         0|1,2
        blocks/*/attn/value/kernel                         0|1,2
        blocks/*/mlp/layers/*/kernel                       0|1
        head/kernel                                        head
        patch_embed/kernel                                 0,1,2|3
        pos_embed                                          embedding
    """,
    "ResNet (NNX)": """
        conv1/kernel                                       0,1,2|3
        fc/kernel                                          head
        layer1/*/conv1/kernel                              0,1,2|3
        layer1/*/conv2/kernel                              0,1,2|3
        layer1/*/conv3/kernel                              0,1,2|3
        layer1/*/downsample/*/kernel                       0,1,2|3
    """,
    "U-Net (NNX)": """
        conv_in/kernel                                     0,1,2|3
        conv_out/kernel                                    0,1,2|3
        down/*/conv/kernel                                 0,1,2|3
        down/*/conv_shortcut/kernel                        0,1,2|3
        down/*/time_emb_proj/kernel                        0|1
        mid_attn/k/kernel                                  0,1,2|3
        mid_attn/proj_out/kernel                           0,1,2|3
        mid_attn/q/kernel                                  0,1,2|3
        mid_attn/v/kernel                                  0,1,2|3
        time_embedding/linear_1/kernel                     0|1
        time_embedding/linear_2/kernel                     0|1
        up/*/conv/kernel                                   0,1,2|3
        up/*/conv_shortcut/kernel                          0,1,2|3
        up/*/time_emb_proj/kernel                          0|1
        upsample/kernel                                    0,1,2|3
    """,
    "MLP-Mixer (NNX)": """
        blocks/*/channel_mixing/fc1/kernel                 0|1
        blocks/*/channel_mixing/fc2/kernel                 0|1
        blocks/*/token_mixing/fc1/kernel                   0|1
        blocks/*/token_mixing/fc2/kernel                   0|1
        head/kernel                                        head
        stem/kernel                                        0,1,2|3
    """,
    "LSTM (NNX)": """
        embed/embedding                                    embedding
        first/hf/kernel                                    0|1
        first/hg/kernel                                    0|1
        first/hi/kernel                                    0|1
        first/ho/kernel                                    0|1
        first/if_/kernel                                   0|1
        first/ig/kernel                                    0|1
        first/ii/kernel                                    0|1
        first/io/kernel                                    0|1
        readout/kernel                                     head
        second/dense_h/kernel                              0|1/4
        second/dense_i/kernel                              0|1/4
        third/dense_h/kernel                               0|1/3
        third/dense_i/kernel                               0|1/3
    """,
    "GPT (Linen)": """
        Embed_0/embedding                                  embedding
        block_0/Dense_0/kernel                             0|1
        block_0/Dense_1/kernel                             0|1
        block_0/MultiHeadDotProductAttention_0/key/kernel  0|1,2
        block_0/MultiHeadDotProductAttention_0/out/kernel  0,1|2
        block_0/MultiHeadDotProductAttention_0/query/kernel 0|1,2
        block_0/MultiHeadDotProductAttention_0/value/kernel 0|1,2
        block_1/Dense_0/kernel                             0|1
        block_1/Dense_1/kernel                             0|1
        block_1/MultiHeadDotProductAttention_0/key/kernel  0|1,2
        block_1/MultiHeadDotProductAttention_0/out/kernel  0,1|2
        block_1/MultiHeadDotProductAttention_0/query/kernel 0|1,2
        block_1/MultiHeadDotProductAttention_0/value/kernel 0|1,2
        logits/kernel                                      head
        pos_embedding                                      embedding
    """,
    "GPT, scanned (Linen)": """
        Embed_0/embedding                                  embedding
        blocks/Dense_0/kernel                              1|2
        blocks/Dense_1/kernel                              1|2
        blocks/MultiHeadDotProductAttention_0/key/kernel   1|2,3
        blocks/MultiHeadDotProductAttention_0/out/kernel   1,2|3
        blocks/MultiHeadDotProductAttention_0/query/kernel 1|2,3
        blocks/MultiHeadDotProductAttention_0/value/kernel 1|2,3
        logits/kernel                                      head
        pos_embedding                                      embedding
    """,
    "ResNet (Linen)": """
        Conv_0/kernel                                      0,1,2|3
        Conv_1/kernel                                      0,1,2|3
        Dense_0/kernel                                     head
        depthwise_conv/kernel                              depthwise convolution
    """,
    "LSTM (Linen)": """
        Embed_0/embedding                                  embedding
        GRUCell_0/hn/kernel                                0|1
        GRUCell_0/hr/kernel                                0|1
        GRUCell_0/hz/kernel                                0|1
        GRUCell_0/in/kernel                                0|1
        GRUCell_0/ir/kernel                                0|1
        GRUCell_0/iz/kernel                                0|1
        OptimizedLSTMCell_0/hf/kernel                      0|1
        OptimizedLSTMCell_0/hg/kernel                      0|1
        OptimizedLSTMCell_0/hi/kernel                      0|1
        OptimizedLSTMCell_0/ho/kernel                      0|1
        OptimizedLSTMCell_0/if/kernel                      0|1
        OptimizedLSTMCell_0/ig/kernel                      0|1
        OptimizedLSTMCell_0/ii/kernel                      0|1
        OptimizedLSTMCell_0/io/kernel                      0|1
        head/kernel                                        head
    """,
    "GPT (Equinox)": """
        embedding/weight                                   embedding
        position_embedding/weight                          embedding
        blocks/*/attention/query_proj/weight               1|0
        blocks/*/attention/key_proj/weight                 1|0
        blocks/*/attention/value_proj/weight               1|0
        blocks/*/attention/output_proj/weight              1|0
        blocks/*/mlp/layers/*/weight                       1|0
        lm_head/weight                                     head
    """,
    "GPT, scanned (Equinox)": """
        embedding/weight                                   embedding
        position_embedding/weight                          embedding
        blocks/attention/query_proj/weight                 2|1
        blocks/attention/key_proj/weight                   2|1
        blocks/attention/value_proj/weight                 2|1
        blocks/attention/output_proj/weight                2|1
        blocks/mlp/layers/*/weight                         2|1
        lm_head/weight                                     head
    """,
    "Convolutions and LSTM (Equinox)": """
        conv/weight                                        1,2,3|0
        depthwise/weight                                   depthwise convolution
        lstm/weight_ih                                     1|0/4
        lstm/weight_hh                                     1|0/4
        gru/weight_ih                                      1|0/3
        gru/weight_hh                                      1|0/3
        head/weight                                        head
    """,
}


def all_numbers(path):
    return re.sub(r"(?<![^/])\d+(?![^/])", "*", path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_leaf_is_pinned(name):
    found = {}
    for leaf in jax.tree.leaves(route(ARCHITECTURES[name]())):
        if leaf.rule not in ("vector", "bias or gain"):
            what = leaf.rule if leaf.axes is None else view_of(leaf)
            assert found.setdefault(all_numbers(leaf.path), what) == what
        else:
            assert leaf.label == "adamw"
            assert not leaf.path.endswith(("kernel", "embedding"))
    assert found == dict(line.split(maxsplit=1) for line in PINNED[name].strip().splitlines())


DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_models_is_current():
    page = runpy.run_path(str(DOCS / "make_models.py"))["page"]()
    current = (DOCS / "reference" / "models.md").read_text(encoding="utf-8")
    assert page == current, "run `python docs/make_models.py`"


def test_the_rules_that_the_page_shows_can_be_written():
    (block,) = re.findall(
        r"```python\n(from muon_jax .*?)```", (DOCS / "reference" / "models.md").read_text(), re.S
    )
    names = {"muon_jax": muon_jax}
    exec(block, names)
    shapes = {"query": (8, 2, 4), "grouped_conv": (3, 3, 2, 16), "probe": (8, 3), "gate_up": (8, 4)}
    params = tree_of({f"attn/{name}/kernel": shape for name, shape in shapes.items()})
    views = matrix_axes(params, rules=names["rules"])
    assert views["attn"]["query"]["kernel"].matrix_shapes((8, 2, 4)) == ((2, 8, 4),)
    assert views["attn"]["grouped_conv"]["kernel"].matrix_shapes((3, 3, 2, 16)) == ((8, 18, 2),)
