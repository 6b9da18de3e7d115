"""The two ends of a model, embeddings and heads, and the layers that look like them.

Expected are the view, or `-` for the fallback.
"""

ENDS = {
    "maps of patches with the names of tables": {
        "vision/patch_embed/weight": ((8, 48), "1|0"),  # of patches laid flat
        "vision/patch_embedding/weight": ((8, 3, 4, 4), "1,2,3|0"),
        "vision/stem_embedding/weight": ((8, 3, 4, 4), "1,2,3|0"),
        "text/word_embedding/weight": ((99, 8), "-"),
    },
    "a vocabulary of bytes, as many as the MLP is wide": {
        "embed/embedding": ((32, 8), "-"),
        "blocks/0/linear1/kernel": ((8, 32), "0|1"),
        "blocks/0/linear2/kernel": ((32, 8), "0|1"),
        "linear/kernel": ((8, 32), "-"),
    },
    "a vocabulary of bytes, as many as the scanned MLPs are wide": {
        "embed/embedding": ((32, 8), "-"),
        "blocks/linear1/kernel": ((3, 8, 32), "1|2"),
        "blocks/linear2/kernel": ((3, 32, 8), "1|2"),
        "linear/kernel": ((8, 32), "-"),
    },
    "a vocabulary as large as the model is wide": {
        "embed/embedding": ((8, 8), "-"),
        "pooler/dense/kernel": ((8, 8), "0|1"),  # nothing tells it from a table
    },
    "a classifier of images below params": {
        "params/Conv_0/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "params/Dense_0/kernel": ((8, 10), "-"),
    },
    "an encoder of images": {
        "encoder/Conv_0/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "encoder/bottleneck/kernel": ((8, 4), "0|1"),
    },
    "a generator of images": {
        "params/Dense_0/kernel": ((6, 4 * 4 * 16), "0|1"),
        "params/ConvTranspose_0/kernel": ((4, 4, 16, 8), "0,1,2|3"),
        "params/ConvTranspose_1/kernel": ((4, 4, 8, 3), "0,1,2|3"),
    },
    "a generator whose latent is as wide as a filter, of torch": {
        "project/weight": ((4 * 4 * 16, 8), "1|0"),
        "up/0/weight": ((8, 16, 3, 3), "1,2,3|0"),
        "up/1/weight": ((1, 8, 3, 3), "1,2,3|0"),
    },
    "a U-Net that knows the time": {
        "time/kernel": ((6, 8), "0|1"),
        "down/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "up/kernel": ((3, 3, 16, 8), "0,1,2|3"),  # of both ways down and up
        "out_conv/kernel": ((3, 3, 8, 3), "0,1,2|3"),
    },
    "a U-Net whose time is as wide as some channels": {
        "time/kernel": ((6, 8), "0|1"),
        "conv_in/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "conv_down/kernel": ((3, 3, 8, 16), "0,1,2|3"),
        "depthwise_conv/kernel": ((7, 7, 1, 16), "-"),
        "conv_up/kernel": ((3, 3, 24, 8), "0,1,2|3"),
        "conv_out/kernel": ((3, 3, 8, 3), "0,1,2|3"),
    },
    "a generator that narrows unevenly": {
        "Dense_0/kernel": ((6, 4 * 4 * 16), "0|1"),
        "ConvTranspose_0/kernel": ((4, 4, 16, 12), "0,1,2|3"),
        "ConvTranspose_1/kernel": ((4, 4, 12, 3), "0,1,2|3"),
    },
    "a classifier of gray images with one filter": {
        "Conv_0/kernel": ((3, 3, 1, 8), "-"),  # of one channel
        "Dense_0/kernel": ((8, 16), "-"),
    },
    "a U-Net that scales and shifts by the time": {
        "time_mlp/kernel": ((8, 32), "0|1"),
        "conv_in/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "conv_down/kernel": ((3, 3, 8, 16), "0,1,2|3"),
        "conv_up/kernel": ((3, 3, 24, 8), "0,1,2|3"),
        "conv_out/kernel": ((3, 3, 8, 3), "0,1,2|3"),
    },
    "a generator of transposed filters, of torch": {
        "fc/weight": ((4 * 4 * 32, 10), "1|0"),
        "deconv1/weight": ((32, 16, 4, 4), "0,2,3|1"),
        "deconv1/bias": ((16,), "-"),
        "deconv2/weight": ((16, 3, 4, 4), "0,2,3|1"),
        "deconv2/bias": ((3,), "-"),
    },
    "a policy for as many squares as channels": {
        "Conv_0/kernel": ((3, 3, 2, 64), "0,1,2|3"),
        "Conv_1/kernel": ((1, 1, 64, 2), "0,1,2|3"),
        "Dense_0/kernel": ((128, 64), "-"),
    },
    "a classifier that squeezes and excites its channels": {
        "Conv_0/kernel": ((3, 3, 3, 32), "0,1,2|3"),
        "squeeze/kernel": ((1, 1, 32, 1), "-"),
        "excite/kernel": ((1, 1, 1, 32), "-"),  # of one channel
        "fc/kernel": ((32, 32), "-"),
    },
    "a scanned encoder with fused attention, and what reads its inputs": {
        "patch_proj/kernel": ((48, 16), "0|1"),
        "patch_proj/bias": ((16,), "-"),
        "layers/norm/scale": ((4, 16), "-"),
        "layers/attn/qkv/kernel": ((4, 16, 3, 16), "1|3"),
    },
    "a classifier with as many classes as channels": {
        "Conv_0/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "Conv_1/kernel": ((3, 3, 8, 16), "0,1,2|3"),
        "Dense_0/kernel": ((16, 8), "-"),
    },
    "a board game's policy, of two planes": {
        "Conv_0/kernel": ((3, 3, 17, 32), "0,1,2|3"),
        "policy/kernel": ((1, 1, 32, 2), "0,1,2|3"),
        "Dense_0/kernel": ((2 * 8 * 8, 65), "-"),
    },
    "heads of several layers": {
        "head/Dense_0/kernel": ((8, 8), "0|1"),
        "head/Dense_1/kernel": ((8, 8), "0|1"),
        "head/Dense_2/kernel": ((8, 10), "-"),
        "torch/classifier/dense/weight": ((8, 8), "1|0"),
        "torch/classifier/out_proj/weight": ((3, 8), "-"),
        "sequential/classifier/0/weight": ((32, 50), "1|0"),
        "sequential/classifier/3/weight": ((32, 32), "1|0"),
        "sequential/classifier/6/weight": ((10, 32), "-"),
        "filters/head/0/weight": ((8, 4, 3, 3), "1,2,3|0"),
        "filters/head/layers_0/kernel": ((3, 3, 4, 8), "0,1,2|3"),
        "general/head/out/kernel": ((4, 2, 8), "-"),
        "equinox/head/layers/0/weight": ((8, 6), "1|0"),
        "equinox/head/layers/1/weight": ((10, 8), "-"),
        "nnx/head/layers/0/kernel": ((6, 8), "0|1"),
        "nnx/head/layers/2/kernel": ((8, 10), "-"),
        "linen/head/layers_0/kernel": ((6, 8), "0|1"),
        "linen/head/layers_2/kernel": ((8, 10), "-"),
        "dino/head/last_layer/weight": ((99, 8), "-"),
    },
    "heads before a norm, and logits after it": {
        "lm_head/dense/kernel": ((8, 8), "0|1"),
        "lm_head/layer_norm/scale": ((8,), "-"),
        "lm_head/decoder/kernel": ((8, 99), "-"),
        "lm_head/bias": ((99,), "-"),
        "word_embeddings/embedding": ((99, 8), "-"),
    },
    "a head of torch before a norm, and logits after it": {
        "model/head/dense/weight": ((8, 8), "1|0"),
        "model/head/norm/weight": ((8,), "-"),
        "decoder/weight": ((99, 8), "-"),
        "tok_embeddings/weight": ((99, 8), "-"),
    },
    "a head whose logits are tied": {
        "lm_head/dense/kernel": ((8, 8), "0|1"),
        "lm_head/layer_norm/scale": ((8,), "-"),
        "lm_head/bias": ((99,), "-"),
    },
    "what comes before the logits": {
        "pre_logits/kernel": ((8, 8), "0|1"),
        "torch/head/pre_logits/fc/weight": ((16, 8), "1|0"),
        "torch/head/fc/weight": ((10, 16), "-"),
    },
    "heads by name, as wide as nothing else": {
        "trunk/kernel": ((8, 8), "0|1"),
        "policy_head/Dense_0/kernel": ((8, 16), "0|1"),
        "policy_head/Dense_1/kernel": ((16, 18), "-"),
        "advantage_head/Dense_0/kernel": ((8, 18), "-"),
        "value_head/Dense_0/kernel": ((8, 16), "0|1"),
        "value_head/Dense_1/kernel": ((16, 601), "-"),
        "classification_head/out_proj/weight": ((3, 8), "-"),
        "head_observations/2/weight": ((512, 8), "-"),
        "lm_heads/0/weight": ((99, 8), "-"),
        "lm_heads/1/weight": ((99, 8), "-"),
    },
    "heads by name, whose features go on": {
        "box_head/fc6/weight": ((32, 50), "1|0"),
        "box_head/fc7/weight": ((32, 32), "1|0"),
        "box_predictor/cls_score/weight": ((9, 32), "1|0"),  # as its name has it
    },
    "heads of attention": {
        "gat/heads/0/W": ((14, 8), "0|1"),
        "gat/heads/1/W": ((14, 8), "0|1"),
        "attn_head/proj/kernel": ((8, 12), "0|1"),
        "map/head/q_proj/kernel": ((8, 8), "0|1"),
        "map/head/out_proj/kernel": ((8, 7), "0|1"),
    },
    "heads side by side": {
        "heads/linear_0/kernel": ((8, 10), "-"),
        "heads/linear_1/kernel": ((8, 10), "-"),
        "square/head/dense_a/kernel": ((8, 8), "-"),
        "square/head/dense_b/kernel": ((8, 8), "-"),
    },
    "a vocabulary behind more features than an embedding has": {
        "embed/embedding": ((99, 8), "-"),
        "linear/kernel": ((16, 99), "-"),
        "linear/bias": ((99,), "-"),
    },
    "a vocabulary as large as other layers are wide": {
        "embed/embedding": ((32, 8), "-"),
        "Dense_0/kernel": ((8, 32), "-"),  # has the shape of the table
        "Dense_1/kernel": ((64, 32), "0|1"),
        "LayerNorm_0/scale": ((32,), "-"),
        "core/proj/kernel": ((16, 32), "0|1"),
        "torso/Dense_0/kernel": ((8, 32), "0|1"),  # of another part of the model
        "block/attn/out_proj/kernel": ((16, 32), "0|1"),
    },
    "arrays that are no vocabularies, as wide as what reads": {
        "class_embedding": ((16,), "-"),
        "patch_embed/proj/weight": ((16, 48), "1|0"),
        "clip/patch_embedding/weight": ((12, 3, 4, 4), "1,2,3|0"),
        "adapter/fc2/weight": ((12, 20), "1|0"),
        "unembed/w": ((18, 99), "-"),
        "mlp/linear_1/w": ((40, 18), "0|1"),
        "embed_norm/weight": ((24,), "-"),
        "proj/weight": ((24, 30), "1|0"),
        "relative_attention_bias/embedding": ((36, 7), "-"),
        "pre/Dense_0/kernel": ((9, 36), "0|1"),
    },
    "the only decoder of a model that numbers all": {
        "Embed_0/embedding": ((99, 8), "-"),
        "Decoder_0/Block_0/Dense_0/kernel": ((8, 32), "0|1"),
        "Decoder_0/Block_1/Dense_0/kernel": ((8, 32), "0|1"),
        "Decoder_0/Dense_0/kernel": ((8, 99), "-"),
    },
    "a vocabulary of Haiku behind more features than an embedding has": {
        "lm/~/embed/embeddings": ((99, 8), "-"),
        "lm/~/linear/w": ((16, 99), "-"),
        "lm/~/linear/b": ((99,), "-"),
    },
    "a vocabulary behind more features than a bare embedding has": {
        "w_e": ((99, 8), "-"),
        "linear/kernel": ((16, 99), "-"),
    },
    "a vocabulary as large as the first of two layers is wide": {
        "embed/embedding": ((32, 6), "-"),
        "fc1/kernel": ((6, 32), "0|1"),
        "fc2/kernel": ((32, 10), "0|1"),
    },
    "a generator of words, of torch": {
        "src_embed/weight": ((99, 8), "-"),
        "generator/weight": ((99, 8), "-"),
    },
    "embeddings by other names": {
        "tok/weight": ((99, 8), "-"),
        "src_tok/weight": ((99, 8), "-"),
        "word/w": ((99, 8), "-"),
        "lookup": ((99, 8), "-"),
        "table": ((99, 8), "-"),
        "userEmb/weight": ((99, 8), "-"),
        "embed_tokens/0/weight": ((99, 8), "-"),
        "atom_embedding_list/0/weight": ((9, 8), "-"),
        "emb_l/0/weight": ((9, 8), "-"),
        "time_embed/0/weight": ((12, 8), "1|0"),
        "time_embed/0/bias": ((12,), "-"),
        "patch_embed/0/weight": ((12, 8), "1|0"),
        "patch_embed/embedding": ((256, 8), "-"),  # of bytes
        "embs/1/weight": ((9, 8), "-"),
        "temb/weight": ((32, 8), "1|0"),
        "temb/bias": ((32,), "-"),
        "lookup_head/query/kernel": ((8, 2, 4), "0|1,2"),
    },
    "layers with the names of tables, and a bias": {
        "embed/weight": ((8, 17), "1|0"),
        "embed/bias": ((8,), "-"),
        "embed_obs/w": ((17, 8), "0|1"),
        "embed_obs/b": ((8,), "-"),
        "position_encoder/w": ((3, 8), "0|1"),
        "position_encoder/b": ((8,), "-"),
        "decoder/weight": ((17, 8), "1|0"),  # not tied: no table has its shape
        "tokens/embedding": ((99, 8), "-"),
        "tokens/bias": ((99,), "-"),
    },
}
