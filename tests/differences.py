"""Parameters whose names and loss lead to different routes in a model of the gallery, and why."""

import jax
from traces import array

from muon_jax import MatrixAxes, Split
from muon_jax.explain._compare import differences
from muon_jax.routing._route import route
from muon_jax.trees._patterns import path_fits

PLAIN, FILTER = MatrixAxes(0, 1), MatrixAxes((0, 1, 2), 3)
GROUPS = "The number of groups of a convolution is in no name and no shape."

DIFFERENCES = {
    # (model, pattern of paths): (view by name, view by the loss, why the name is not enough)
    ("DeepSeek (NNX)", "layers/*/self_attn/kv_a_proj_with_mqa/kernel"): (
        PLAIN,
        MatrixAxes(0, 1, (12, 4)),
        "The widths of the latent and of the rotary key, side by side here, are in no name.",
    ),
    ("DeepSeek (NNX)", "layers/*/self_attn/kv_b_proj/kernel"): (
        PLAIN,
        MatrixAxes(0, 1, Split((8, 8), interleaved=True)),
        "Keys and values lie side by side in every head, and no name tells the heads.",
    ),
    ("ResNet (Linen)", "Conv_1/kernel"): (FILTER, MatrixAxes((0, 1, 2), 3, 4), GROUPS),
    ("Linen filters", "layers_1/kernel"): (FILTER, MatrixAxes((0, 1, 2), 3, 4), GROUPS),
    ("Equinox filters", "layers/2/weight"): (
        MatrixAxes((1, 2), 0),
        MatrixAxes((1, 2), 0, 2),
        GROUPS,
    ),
    ("Keras encoder", "dense/kernel"): (
        PLAIN,
        None,
        "`dense` may be any layer, and a recurrent layer of this model has as many outputs.",
    ),
}


def check_differences(model, traced):
    """Asserts that routes by name and by the loss differ exactly as in the table."""
    shapes = traced.structure.unflatten([array(*leaf.shape) for leaf in traced.leaves])
    by_name = {each.path: each for each in jax.tree.leaves(route(shapes, ambiguous="fallback"))}
    listed = {pattern: entry for (name, pattern), entry in DIFFERENCES.items() if name == model}
    found = {}
    for path, told in differences(list(by_name.values()), traced.leaves).items():
        pattern = next((each for each in listed if path_fits(each, path)), path)
        found.setdefault(pattern, set()).add((by_name[path].axes, told.axes))
    assert found == {pattern: {(named, told)} for pattern, (named, told, _) in listed.items()}
