"""The default rules on the names and shapes of many libraries and models.

Expected are the view, `-` for the fallback, or `?` for an error that shows the readings.
"""

import jax
import optax
import pytest
from routes import tree_of, view_of

from muon_jax._routing import route

MODELS = {
    "Hugging Face Flax BERT": {
        "embeddings/word_embeddings/embedding": ((99, 8), "-"),
        "embeddings/position_embeddings/embedding": ((16, 8), "-"),
        "embeddings/token_type_embeddings/embedding": ((2, 8), "-"),
        "encoder/layer/0/attention/self/query/kernel": ((8, 8), "0|1"),
        "encoder/layer/0/attention/output/dense/kernel": ((8, 8), "0|1"),
        "encoder/layer/0/intermediate/dense/kernel": ((8, 32), "0|1"),
        "encoder/layer/0/output/dense/kernel": ((32, 8), "0|1"),
        "pooler/dense/kernel": ((8, 8), "0|1"),
        "cls/predictions/transform/dense/kernel": ((8, 8), "0|1"),
        "cls/predictions/decoder/kernel": ((8, 99), "-"),
        "cls/seq_relationship/kernel": ((8, 2), "0|1"),
        "classifier/kernel": ((8, 3), "-"),
    },
    "Hugging Face Flax BERT, scanned": {
        "encoder/scan/attention/self/query/kernel": ((3, 8, 8), "1|2"),
        "encoder/scan/attention/self/query/bias": ((3, 8), "-"),
        "encoder/scan/attention/output/dense/kernel": ((3, 8, 8), "1|2"),
        "encoder/scan/attention/output/LayerNorm/scale": ((3, 8), "-"),
        "encoder/scan/intermediate/dense/kernel": ((3, 8, 32), "1|2"),
    },
    "Hugging Face Flax GPT-2, stored transposed": {
        "h/0/attn/c_attn/kernel": ((24, 8), "1|0/3"),
        "h/0/attn/c_attn/bias": ((24,), "-"),
        "h/0/attn/c_proj/kernel": ((8, 8), "0|1"),
        "h/0/mlp/c_fc/kernel": ((32, 8), "1|0"),
        "h/0/mlp/c_fc/bias": ((32,), "-"),
        "h/0/mlp/c_proj/kernel": ((8, 32), "1|0"),
        "h/0/mlp/c_proj/bias": ((8,), "-"),
    },
    "T5": {
        "shared/embedding": ((99, 8), "-"),
        "encoder/block/0/layer/0/SelfAttention/q/kernel": ((8, 12), "0|1"),
        "encoder/block/0/layer/0/SelfAttention/o/kernel": ((12, 8), "0|1"),
        "encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding": ((32, 2), "-"),
        "encoder/block/0/layer/1/DenseReluDense/wi_0/kernel": ((8, 32), "0|1"),
        "encoder/block/0/layer/1/DenseReluDense/wo/kernel": ((32, 8), "0|1"),
        "encoder/block/0/layer/1/layer_norm/weight": ((8,), "-"),
        "decoder/block/0/layer/1/EncDecAttention/k/kernel": ((8, 12), "0|1"),
        "lm_head/kernel": ((8, 99), "-"),
    },
    "T5X": {
        "token_embedder/embedding": ((99, 8), "-"),
        "encoder/relpos_bias/rel_embedding": ((2, 32), "-"),
        "decoder/layers_0/self_attention/query/kernel": ((8, 12), "0|1"),
        "decoder/layers_0/mlp/wi_0/kernel": ((8, 32), "0|1"),
        "decoder/logits_dense/kernel": ((8, 99), "-"),
    },
    "Whisper": {
        "encoder/conv1/kernel": ((3, 80, 8), "0,1|2"),
        "encoder/conv2/kernel": ((3, 8, 8), "0,1|2"),
        "encoder/embed_positions/embedding": ((16, 8), "-"),
        "encoder/layers/0/self_attn/k_proj/kernel": ((8, 8), "0|1"),
        "decoder/embed_tokens/embedding": ((99, 8), "-"),
        "decoder/layers/0/encoder_attn/out_proj/kernel": ((8, 8), "0|1"),
        "decoder/layers/0/fc1/kernel": ((8, 32), "0|1"),
        "proj_out/kernel": ((8, 99), "-"),
    },
    "CLIP": {
        "logit_scale": ((), "-"),
        "text_model/embeddings/token_embedding/embedding": ((99, 8), "-"),
        "text_model/embeddings/position_embedding/embedding": ((16, 8), "-"),
        "vision_model/embeddings/class_embedding": ((8,), "-"),
        "vision_model/embeddings/patch_embedding/kernel": ((4, 4, 3, 8), "0,1,2|3"),
        "vision_model/encoder/layers/0/self_attn/q_proj/kernel": ((8, 8), "0|1"),
        "text_projection/kernel": ((8, 6), "0|1"),
        "visual_projection/kernel": ((8, 6), "0|1"),
    },
    "CLIP in torch's names": {
        "positional_embedding": ((16, 8), "-"),
        "text_projection": ((8, 6), "0|1"),
        "visual/proj": ((8, 6), "0|1"),
        "visual/conv1/weight": ((8, 3, 4, 4), "1,2,3|0"),
        "visual/positional_embedding": ((16, 8), "-"),
        "transformer/resblocks/0/attn/in_proj_weight": ((24, 8), "1|0/3"),
        "transformer/resblocks/0/attn/in_proj_bias": ((24,), "-"),
        "transformer/resblocks/0/attn/out_proj/weight": ((8, 8), "1|0"),
        "transformer/resblocks/0/mlp/c_fc/weight": ((32, 8), "1|0"),
        "token_embedding/weight": ((99, 8), "-"),
    },
    "DiT": {
        "x_embedder/proj/kernel": ((2, 2, 4, 8), "0,1,2|3"),
        "pos_embed": ((1, 16, 8), "-"),
        "t_embedder/mlp/0/kernel": ((6, 8), "0|1"),
        "y_embedder/embedding_table/embedding": ((11, 8), "-"),
        "blocks/0/attn/qkv/kernel": ((8, 24), "0|1/3"),
        "blocks/0/attn/proj/kernel": ((8, 8), "0|1"),
        "blocks/0/mlp/fc1/kernel": ((8, 32), "0|1"),
        "blocks/0/adaLN_modulation/1/kernel": ((8, 48), "0|1"),
        "final_layer/linear/kernel": ((8, 16), "0|1"),
    },
    "DiT in torch's names": {
        "x_embedder.proj.weight": ((8, 4, 2, 2), "1,2,3|0"),
        "t_embedder.mlp.0.weight": ((8, 6), "1|0"),
        "y_embedder.embedding_table.weight": ((11, 8), "-"),
        "blocks.0.attn.qkv.weight": ((24, 8), "1|0/3"),
        "blocks.0.adaLN_modulation.1.weight": ((48, 8), "1|0"),
    },
    "Mamba": {
        "embedding/embedding": ((99, 8), "-"),
        "layers/0/mixer/in_proj/kernel": ((8, 32), "0|1/2"),
        "layers/0/mixer/conv1d/kernel": ((4, 1, 16), "-"),
        "layers/0/mixer/x_proj/kernel": ((16, 7), "0|1"),
        "layers/0/mixer/dt_proj/kernel": ((3, 16), "0|1"),
        "layers/0/mixer/dt_proj/bias": ((16,), "-"),
        "layers/0/mixer/A_log": ((16, 2), "-"),
        "layers/0/mixer/D": ((16,), "-"),
        "layers/0/mixer/out_proj/kernel": ((16, 8), "0|1"),
        "layers/0/norm/weight": ((8,), "-"),
    },
    "Mamba in plain arrays": {
        "layers/0/conv1d": ((4, 16), "-"),
        "layers/0/conv_weight": ((16, 1, 4), "-"),
        "layers/0/A_log": ((16, 2), "-"),
        "layers/0/W_in": ((8, 16), "0|1"),
    },
    "linear attention with short convolutions": {
        "layers/0/q_conv1d/kernel": ((4, 1, 8), "-"),
        "layers/0/k_conv1d/weight": ((8, 1, 4), "-"),
        "layers/0/short_conv/kernel": ((4, 8), "-"),
        "layers/0/b_proj/kernel": ((8, 2), "0|1"),
    },
    "ConvNeXt": {
        "downsample_layers/0/conv/kernel": ((4, 4, 3, 8), "0,1,2|3"),
        "stages/0/0/dwconv/kernel": ((7, 7, 1, 8), "-"),
        "stages/0/0/norm/weight": ((8,), "-"),
        "stages/0/0/pwconv1/kernel": ((8, 32), "0|1"),
        "stages/0/0/gamma": ((8,), "-"),
        "head/kernel": ((8, 10), "-"),
    },
    "EfficientNet": {
        "stem_conv/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "blocks_0/depthwise_conv2d/depthwise_kernel": ((3, 3, 8, 1), "-"),
        "blocks_0/dwconv/kernel": ((5, 5, 1, 8), "-"),
        "blocks_0/se_reduce/kernel": ((1, 1, 8, 2), "0,1,2|3"),
        "blocks_0/project/kernel": ((1, 1, 8, 16), "0,1,2|3"),
        "Dense_0/kernel": ((16, 10), "-"),
    },
    "convolutions of every kind": {
        "Conv_0/kernel": ((1, 7, 8, 8), "0,1,2|3"),
        "Conv_1/kernel": ((3, 3, 3, 8, 8), "0,1,2,3|4"),
        "downsample/kernel": ((3, 1, 8, 8), "0,1,2|3"),
        "skip/kernel": ((1, 3, 3, 8, 8), "0,1,2,3|4"),
        "ConvTranspose_0/kernel": ((2, 2, 16, 8), "0,1,2|3"),
        "up/conv/kernel": ((2, 2, 8, 16), "0,1,3|2"),  # `transpose_kernel`, as its bias shows
        "up/conv/bias": ((8,), "-"),
        "ConvLocal_0/kernel": ((5, 24, 4), "1|2"),
        "ConvLocal_0/bias": ((5, 4), "-"),
        "separable/pointwise_kernel": ((1, 1, 8, 16), "0,1,2|3"),
        "stacked/conv/kernel": ((6, 3, 3, 8, 16), "1,2,3|4"),
        "stacked/conv/bias": ((6, 16), "-"),
    },
    "attention by convolutions": {
        "to_qkv/kernel": ((1, 1, 8, 36), "2|3/3"),
        "to_out/kernel": ((1, 1, 12, 8), "0,1,2|3"),
        "torch/to_qkv/weight": ((36, 8, 1), "1|0/3"),
        "torch/to_out/weight": ((8, 12, 1), "1,2|0"),
        "cross/to_kv/kernel": ((1, 8, 24), "1|2/2"),
        "cross/q/kernel": ((1, 8, 12), "0,1|2"),
        "unclear/to_qkv/kernel": ((1, 1, 8, 36), "?"),
    },
    "one head for all queries": {
        "flax/key/kernel": ((8, 1, 4), "0|1,2"),
        "flax/query/kernel": ((8, 2, 4), "0|1,2"),
        "flax/out/kernel": ((2, 4, 8), "0,1|2"),
        "bare/W_K": ((1, 8, 4), "0,1|2"),
        "bare/W_O": ((2, 4, 8), "0,1|2"),
        "convolved/q/kernel": ((3, 3, 1, 8), "-"),
    },
    "convolutions stored against their name": {
        "conv/weight": ((3, 3, 8, 16), "0,1,2|3"),
        "conv2/weight": ((3, 8, 16), "0,1|2"),
        "conv2/bias": ((16,), "-"),
        "conv3/kernel": ((16, 8, 3, 3), "1,2,3|0"),
        "conv4/kernel": ((16, 8, 5), "1,2|0"),
        "conv4/bias": ((16,), "-"),
        "conv5/kernel": ((3, 3, 8, 3), "0,1,2|3"),
        "conv5/bias": ((3,), "-"),
    },
    "convolutions without the name": {
        "down/kernel": ((3, 3, 8, 16), "0,1,2|3"),
        "up/kernel": ((2, 2, 16, 8), "0,1,2|3"),
        "torch/down/weight": ((16, 8, 3, 3), "1,2,3|0"),
        "audio/down/kernel": ((3, 8, 16), "?"),
        "biased/down/kernel": ((3, 8, 16), "0,1|2"),
        "biased/down/bias": ((16,), "-"),
    },
    "graph networks": {
        "GraphConv_0/kernel": ((8, 16), "0|1"),
        "GCNConv_0/Dense_0/kernel": ((8, 16), "0|1"),
        "conv1/lin/weight": ((16, 8), "1|0"),
        "gat/att_src": ((1, 4, 8), "-"),
    },
    "LoRA": {
        "layers/0/q_proj/kernel": ((8, 8), "0|1"),
        "layers/0/q_proj/lora/lora_a": ((8, 2), "0|1"),
        "layers/0/q_proj/lora/lora_b": ((2, 8), "0|1"),
        "layers.1.q_proj.lora_A.default.weight": ((2, 8), "1|0"),
        "lora/A": ((8, 2), "0|1"),
        "lora/B": ((2, 8), "0|1"),
    },
    "Perceiver": {
        "latents": ((16, 8), "-"),
        "decoder/output_queries": ((4, 8), "-"),
        "cross_attend/to_q/kernel": ((8, 16), "0|1"),
        "cross_attend/to_kv/kernel": ((8, 32), "0|1/2"),
        "cross_attend/to_out/kernel": ((16, 8), "0|1"),
        "latent_proj/kernel": ((8, 8), "0|1"),
    },
    "query transformers and detection": {
        "query_tokens": ((1, 32, 8), "-"),
        "query_embed/weight": ((10, 8), "-"),
        "backbone/mask_token": ((1, 1, 8), "-"),
        "register_tokens": ((1, 4, 8), "-"),
        "class_embed/kernel": ((8, 11), "-"),
    },
    "MaxText, scanned along the second axis": {
        "decoder/layers/pre_self_attention_layer_norm/scale": ((8, 3), "-"),
        "decoder/layers/self_attention/query/kernel": ((8, 3, 2, 4), "0|2,3"),
        "decoder/layers/self_attention/out/kernel": ((2, 3, 4, 8), "0,2|3"),
        "decoder/layers/mlp/wi_0/kernel": ((8, 3, 32), "0|2"),
        "decoder/layers/mlp/wo/kernel": ((32, 3, 8), "0|2"),
        "decoder/layers/MoeBlock_0/gate/kernel": ((8, 3, 6), "-"),
        "decoder/layers/MoeBlock_0/wi_0": ((6, 3, 8, 32), "2|3"),
        "decoder/layers/MoeBlock_0/wo": ((6, 3, 32, 8), "2|3"),
        "decoder/decoder_norm/scale": ((8,), "-"),
        "decoder/logits_dense/kernel": ((8, 99), "-"),
        "token_embedder/embedding": ((99, 8), "-"),
    },
    "norms that call their gain a kernel": {
        "layers/attention_norm/kernel": ((3, 8), "-"),
        "layers/attention/wq/kernel": ((3, 8, 8), "1|2"),
        "layers/attention/wo/kernel": ((3, 8, 8), "1|2"),
        "layers/feed_forward/w1/kernel": ((3, 8, 32), "1|2"),
        "ln_f/kernel": ((8,), "-"),
        "ada_norm/kernel": ((8, 48), "0|1"),
    },
    "AlphaFold": {
        "attention/query_w": ((8, 2, 4), "0|1,2"),
        "attention/output_w": ((2, 4, 8), "0,1|2"),
        "attention/gating_w": ((8, 2, 4), "?"),
        "transition/transition1/weights": ((8, 32), "1|0"),
    },
    "recurrent Gemma": {
        "blocks/0/recurrent_block/conv_1d/w": ((4, 8), "-"),
        "blocks/0/recurrent_block/linear_x/kernel": ((8, 8), "0|1"),
        "blocks/0/recurrent_block/rg_lru/input_gate/w": ((2, 4, 4), "?"),
    },
    "heads with outputs first": {
        "attn/q_proj/weight": ((2, 4, 8), "?"),
        "attn/o_proj/weight": ((8, 2, 4), "?"),
    },
    "tables of a layer each": {
        "per_layer/embedding": ((3, 99, 8), "-"),
        "softmax/logits_ffn/linear/w": ((8, 99), "-"),
        "logitdense/kernel": ((8, 99), "-"),
    },
    "Keras": {
        "embedding/embeddings": ((99, 8), "-"),
        "attention/query/kernel": ((8, 2, 4), "0|1,2"),
        "attention/attention_output/kernel": ((2, 4, 8), "0,1|2"),
        "lstm/lstm_cell/kernel": ((8, 16), "0|1/4"),
        "lstm/lstm_cell/recurrent_kernel": ((4, 16), "0|1/4"),
        "batch_normalization/gamma": ((8,), "-"),
    },
    "Haiku": {
        "transformer/~/embed/embeddings": ((99, 8), "-"),
        "transformer/~/multi_head_attention/query/w": ((8, 8), "0|1"),
        "transformer/~/mlp/~/linear_0/w": ((8, 32), "0|1"),
        "transformer/~/layer_norm/offset": ((8,), "-"),
        "conv2_d/w": ((3, 3, 8, 16), "0,1,2|3"),
        "depthwise_conv2d/w": ((3, 3, 1, 16), "-"),
        "lstm/linear/w": ((12, 16), "0|1/4"),
        "gru/w_i": ((8, 12), "0|1/3"),
        "gru/w_h": ((4, 12), "0|1/3"),
    },
    "torch LSTM": {
        "weight_ih_l0": ((16, 8), "1|0/4"),
        "weight_hh_l0": ((16, 4), "1|0/4"),
        "bias_ih_l0": ((16,), "-"),
    },
    "convolutional LSTM": {
        "ih/kernel": ((3, 3, 6, 16), "0,1,2|3/4"),
        "hh/kernel": ((3, 3, 4, 16), "0,1,2|3/4"),
    },
    "plain recurrent cell": {
        "SimpleCell_0/i/kernel": ((8, 4), "0|1"),
        "cell/dense_i/kernel": ((8, 4), "0|1"),
        "cell/dense_h/kernel": ((4, 4), "0|1"),
        "gru_gate/kernel": ((8, 4), "0|1"),
        "in_proj/kernel": ((8, 16), "0|1"),
    },
    "Gemma": {
        "transformer/embedder/input_embedding": ((99, 8), "-"),
        "transformer/layer_0/attn/q_einsum/w": ((2, 8, 4), "1|0,2"),
        "transformer/layer_0/attn/kv_einsum/w": ((2, 1, 8, 4), "2|1,3"),
        "transformer/layer_0/attn/attn_vec_einsum/w": ((2, 4, 8), "0,1|2"),
        "transformer/layer_0/mlp/gating_einsum": ((2, 8, 32), "1|2"),
        "transformer/layer_0/mlp/linear": ((32, 8), "0|1"),
        "transformer/layer_0/pre_attention_norm/scale": ((8,), "-"),
    },
    "Gemma, gates stored transposed": {
        "mlp/gating_einsum/w": ((2, 32, 8), "2|1"),
        "mlp/linear/w": ((32, 8), "0|1"),
    },
    "heads stored first": {
        "blocks/0/attn/W_Q": ((2, 8, 4), "1|0,2"),
        "blocks/0/attn/W_K": ((2, 8, 4), "1|0,2"),
        "blocks/0/attn/W_V": ((2, 8, 4), "1|0,2"),
        "blocks/0/attn/W_O": ((2, 4, 8), "0,1|2"),
        "blocks/0/mlp/W_in": ((8, 32), "0|1"),
        "embed/W_E": ((99, 8), "-"),
        "pos_embed/W_pos": ((16, 8), "-"),
        "unembed/W_U": ((8, 99), "-"),
    },
    "MaxText experts": {
        "MoeBlock_0/gate/kernel": ((8, 6), "-"),
        "MoeBlock_0/wi_0": ((6, 8, 32), "1|2"),
        "MoeBlock_0/wo": ((6, 32, 8), "1|2"),
        "self_attention/out/kernel": ((2, 4, 8), "0,1|2"),
    },
    "experts around attention": {
        "moe_layer/attention/query/kernel": ((8, 2, 4), "0|1,2"),
        "moe_layer/attention/out/kernel": ((2, 4, 8), "0,1|2"),
        "moe_layer/experts/wi/kernel": ((6, 8, 32), "1|2"),
        "moe_layer/router/kernel": ((8, 6), "-"),
        "moe_layer/router_weights/w": ((8, 6), "-"),
    },
    "experts one by one": {
        "block_sparse_moe/gate/weight": ((6, 8), "-"),
        "block_sparse_moe/experts/0/w1/weight": ((32, 8), "1|0"),
        "block_sparse_moe/experts/1/w1/weight": ((32, 8), "1|0"),
    },
    "experts fused": {
        "mlp/router/kernel": ((8, 6), "-"),
        "mlp/experts/gate_up_proj": ((6, 8, 64), "1|2/2"),
        "mlp/experts/down_proj": ((6, 32, 8), "1|2"),
        "mlp/experts/gate_up_proj_bias": ((6, 64), "-"),
    },
    "a SwiGLU's gate is no router": {
        "mlp/gate/kernel": ((8, 32), "0|1"),
        "mlp/up/kernel": ((8, 32), "0|1"),
        "mlp/down/kernel": ((32, 8), "0|1"),
        "attn/gate/kernel": ((8, 2), "0|1"),
        "attn/query/kernel": ((8, 2, 4), "0|1,2"),
        "attn/out/kernel": ((2, 4, 8), "0,1|2"),
    },
    "gate and up fused": {
        "0/mlp/gate_up_proj/kernel": ((8, 64), "0|1/2"),
        "1/mlp/gate_up_proj/weight": ((64, 8), "1|0/2"),
        "3/mlp/experts/gate_up_proj": ((6, 64, 8), "2|1/2"),
        "3/mlp/experts/down_proj": ((6, 8, 32), "1|2"),
        "4/mlp/gate_up_proj": ((3, 5, 8, 64), "?"),
        "2/mlp/wi/kernel": ((8, 2, 32), "0|2"),
        "2/mlp/wo/kernel": ((32, 8), "0|1"),
    },
    "qkv fused in every way": {
        "a/qkv/kernel": ((8, 24), "0|1/3"),
        "b/qkv/kernel": ((8, 3, 2, 4), "0|2,3"),
        "b/out/kernel": ((2, 4, 8), "0,1|2"),
        "c/qkv/kernel": ((3, 8, 8), "1|2"),
        "d/qkv/kernel": ((8, 16), "0|1/(8,4,4)"),
        "d/o_proj/kernel": ((8, 8), "0|1"),
        "e/qkv_proj/kernel": ((8, 36), "0|1/3"),
        "e/o_proj/kernel": ((12, 8), "0|1"),
        "f/kv/kernel": ((8, 2, 2, 4), "?"),
        "g/qkv/kernel": ((8, 15), "?"),
        "h/query_key_value/kernel": ((8, 24), "?"),
        "j/qkv/kernel": ((8, 2, 12), "?"),
        "l/qkv/kernel": ((8, 6, 4), "?"),
        "k/qkv/kernel": ((2, 5, 8, 2, 12), "?"),
        "i/qkv_einsum/w": ((3, 2, 8, 4), "2|1,3"),
        "i/attn_vec_einsum/w": ((2, 4, 8), "0,1|2"),
    },
    "latent attention with heads": {
        "attn/wq_a/kernel": ((8, 3), "0|1"),
        "attn/wq_b/kernel": ((3, 2, 6), "0|1,2"),
        "attn/wkv_b/kernel": ((3, 2, 8), "0|1,2"),
        "attn/out/kernel": ((2, 4, 8), "0,1|2"),
    },
    "Equinox stacks": {
        "layers/linear/weight": ((3, 16, 8), "2|1"),
        "layers/linear/bias": ((3, 16), "-"),
        "layers/conv/weight": ((3, 16, 8, 5), "2,3|1"),
        "layers/conv/bias": ((3, 16, 1), "-"),
    },
    "scanned blocks of a Big Vision ViT": {
        "Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": ((3, 8, 32), "1|2"),
        "Transformer/encoderblock/LayerNorm_0/scale": ((3, 8), "-"),
        "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": (
            (3, 8, 2, 4),
            "1|2,3",
        ),
        "Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": (
            (3, 2, 4, 8),
            "1,2|3",
        ),
        "Transformer/encoder_norm/scale": ((8,), "-"),
        "embedding/kernel": ((4, 4, 3, 8), "0,1,2|3"),
        "pos_embedding": ((1, 16, 8), "-"),
        "MAPHead_0/probe": ((1, 1, 8), "-"),
        "head/kernel": ((8, 10), "-"),
    },
    "stacks of stacks": {
        "stages/layers/norm/scale": ((2, 3, 8), "-"),
        "stages/layers/attn/query/kernel": ((2, 3, 8, 2, 4), "2|3,4"),
        "stages/layers/attn/out/kernel": ((2, 3, 2, 4, 8), "2,3|4"),
        "stages/layers/moe/experts/up/kernel": ((2, 3, 6, 8, 32), "3|4"),
        "stages/layers/attn/q_norm/scale": ((2, 3, 2, 4), "-"),
    },
    "stacked arrays of a plain dictionary": {
        "layers/attn_norm": ((3, 8), "-"),
        "layers/wq": ((3, 8, 8), "1|2"),
        "layers/wk": ((3, 8, 4), "1|2"),
        "layers/wo": ((3, 8, 8), "1|2"),
        "layers/w1": ((3, 8, 32), "1|2"),
        "layers/w2": ((3, 32, 8), "1|2"),
        "tok_embeddings": ((99, 8), "-"),
        "output": ((8, 99), "-"),
        "norm": ((8,), "-"),
    },
    "Llama in torch's names": {
        "model.embed_tokens.weight": ((99, 8), "-"),
        "model.layers.0.self_attn.q_proj.weight": ((8, 8), "1|0"),
        "model.layers.0.mlp.gate_proj.weight": ((32, 8), "1|0"),
        "model.layers.0.input_layernorm.weight": ((8,), "-"),
        "lm_head.weight": ((99, 8), "-"),
    },
    "general dense layers": {
        "mix/kernel": ((2, 8, 4, 3), "0,1|2,3"),
        "mix/bias": ((4, 3), "-"),
        "linear/kernel": ((2, 8, 4, 3), "0,1|2,3"),
        "linear/bias": ((4, 3), "-"),
        "merge/kernel": ((5, 8, 6), "0,1|2"),
        "merge/bias": ((6,), "-"),
        "unknown/kernel": ((5, 8, 6), "?"),
        "unknown_too/kernel": ((2, 8, 4, 3), "?"),
        "out/kernel": ((5, 8, 6), "?"),
    },
    "heads of classifiers": {
        "head/fc/weight": ((10, 8), "-"),
        "heads/head/weight": ((10, 8), "-"),
        "mlm_head/kernel": ((8, 99), "-"),
        "policy_head/kernel": ((8, 4), "-"),
        "multi_head/kernel": ((8, 8), "-"),
        "score/weight": ((3, 8), "-"),
    },
    "no matrices": {
        "layer/scalar": ((), "-"),
        "layer/kernel": ((8, 1), "-"),
        "value_net/kernel": ((1, 8), "-"),
        "empty/kernel": ((0, 8), "-"),
        "transformer_xl/r_w_bias": ((2, 4), "-"),
        "prelu/negative_slope": ((), "-"),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_default_rules(name):
    model = MODELS[name]
    params = tree_of({path: shape for path, (shape, _) in model.items()})
    found = {}
    for leaf in jax.tree.leaves(route(params, ambiguous="fallback")):
        other = "?" if leaf.rule == "ambiguous" else "-"
        found[leaf.path] = other if leaf.axes is None else view_of(leaf)
    assert found == {path: expected for path, (_, expected) in model.items()}


NEEDS_ITS_BIAS = {
    "h/0/mlp/c_fc/kernel",
    "h/0/mlp/c_proj/kernel",
    "ConvLocal_0/kernel",
    "stacked/conv/kernel",
    "up/conv/kernel",
    "conv2/weight",
    "conv4/kernel",
}
"""Stored against their names, or stacked, as only a bias tells, which a mask hides."""


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_changes_no_view_or_asks(name):
    params = tree_of({path: shape for path, (shape, _) in MODELS[name].items()})
    whole = route(params, ambiguous="fallback")
    masked = jax.tree.map(
        lambda leaf, found: leaf if found.axes else optax.MaskedNode(), params, whole
    )
    wanted = {leaf.path: leaf for leaf in jax.tree.leaves(whole) if leaf.axes}
    differing = {
        leaf.path
        for leaf in jax.tree.leaves(route(masked, ambiguous="fallback"))
        if leaf.rule != "ambiguous" and leaf.axes != wanted[leaf.path].axes
    }
    assert differing <= NEEDS_ITS_BIAS
