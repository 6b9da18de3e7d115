"""The default rules on the names and shapes of many libraries, models and layers."""

import jax
import optax
import pytest
from known_layers import LAYERS as KNOWN_LAYERS
from known_models import MODELS as KNOWN_MODELS
from routes import tree_of, view_of

from muon_jax._routing import route

MODELS = {**KNOWN_MODELS, **KNOWN_LAYERS}


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
