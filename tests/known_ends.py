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
        "time/kernel": ((32, 8), "0|1"),
        "down/kernel": ((3, 3, 3, 8), "0,1,2|3"),
        "up/kernel": ((3, 3, 16, 8), "0,1,2|3"),  # of both ways down and up
        "out_conv/kernel": ((3, 3, 8, 3), "0,1,2|3"),
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
    },
    "heads side by side": {
        "heads/linear_0/kernel": ((8, 10), "-"),
        "heads/linear_1/kernel": ((8, 10), "-"),
        "square/head/dense_a/kernel": ((8, 8), "-"),
        "square/head/dense_b/kernel": ((8, 8), "-"),
    },
    "a vocabulary behind more features than an embedding has": {
        "embed/embedding": ((99, 8), "-"),
        "lstm/hidden/kernel": ((16, 99), "0|1"),  # within a layer of another name
        "linear/kernel": ((16, 99), "-"),
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
