"""Names against the loss, on every architecture of the gallery."""

import jax
import pytest
from architectures import ARCHITECTURES
from differences import check_differences
from forwards import FORWARDS

from muon_jax import trace_axes
from muon_jax.routing._route import route


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_loss_agree_or_the_difference_is_listed(name):
    loss, params, args = FORWARDS[name]()
    with jax.numpy_rank_promotion("allow"):
        traced = trace_axes(loss, params, *args)
    assert [leaf.why for leaf in traced.leaves if not leaf.read] == []
    paths = {found.path for found in jax.tree.leaves(route(ARCHITECTURES[name]()))}
    assert paths == {leaf.path for leaf in traced.leaves}
    check_differences(name, traced)
