"""Names against the loss, on every model of the gallery."""

import jax
import pytest
from architectures import ARCHITECTURES
from forwards import FORWARDS
from traces import in_short

from muon_jax import trace_axes
from muon_jax.routing._route import route

DIFFERENCES = {
    # the model, the end of a path: (by name, by the loss, why)
    ("ResNet (Linen)", "Conv_1/kernel"): ("0,1,2|3", "0,1,2|3/4"),  # four groups of channels
    # The latent and the rotary key, and keys and values, are different maps of one input.
    ("DeepSeek (NNX)", "kv_a_proj_with_mqa/kernel"): ("0|1", "0|1/(12,4)"),
    ("DeepSeek (NNX)", "kv_b_proj/kernel"): ("0|1", "0|1/(8,8)i"),
}
"""Where names cannot tell what the loss tells."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_loss_agree(name):
    loss, model, args = FORWARDS[name]()
    with jax.numpy_rank_promotion("allow"):
        traced = trace_axes(loss, model, *args)
    by_name = {found.path: found for found in jax.tree.leaves(route(ARCHITECTURES[name]()))}
    assert by_name.keys() <= {leaf.path for leaf in traced.leaves}
    differences = {}
    for leaf in traced.leaves:
        if leaf.path in by_name:
            assert leaf.read, leaf.why
            named, told = (
                in_short(by_name[leaf.path].axes, leaf.shape),
                in_short(leaf.axes, leaf.shape),
            )
            if named != told:
                end = "/".join(leaf.path.split("/")[-2:])
                differences[name, end] = named, told
    assert differences == {key: value for key, value in DIFFERENCES.items() if key[0] == name}
