"""Warnings of `muon` at `init`, and notes of `explain`: no matrix for Muon, or no output head."""

import re

import jax
import jax.numpy as jnp
import pytest
from routes import tree_of

import muon_jax
from muon_jax.routing._notices import notices
from muon_jax.routing._route import route

NO_HEAD = {
    # name: (shapes, the paths that may be a head)
    "a table, and an output as wide as two of it": (
        {"embed/embedding": (99, 8), "mlp/up": (8, 16), "mlp/down": (16, 8), "final": (8, 50)},
        ["final"],
    ),
    "a dense layer after another": ({"l1/kernel": (4, 8), "l2/kernel": (8, 3)}, ["l2/kernel"]),
    "two ends": ({"l1": (4, 8), "mean": (8, 3), "spread": (8, 5)}, ["mean", "spread"]),
    "with outputs first": ({"l1/weight": (8, 4), "l2/weight": (3, 8)}, ["l2/weight"]),
}
SILENT = {
    "a head by its name": {"l1/kernel": (4, 8), "head/kernel": (8, 3)},
    "a head by its table": {"embed/embedding": (99, 8), "mix": (8, 16), "dense/kernel": (16, 99)},
    "a table that may be tied": {"embed/embedding": (99, 8), "up": (8, 16), "down": (16, 8)},
    "one dense layer": {"dense/kernel": (4, 8), "dense/bias": (8,)},
    "blocks alone": {"0/up/kernel": (8, 16), "0/down/kernel": (16, 8), "norm/scale": (8,)},
}


def of(shapes, **options):
    return notices(jax.tree.leaves(route(tree_of(shapes), **options)))


@pytest.mark.parametrize(("shapes", "paths"), NO_HEAD.values(), ids=NO_HEAD)
def test_a_missing_head_is_named_and_either_remedy_works(shapes, paths):
    (notice,) = of(shapes)
    assert f"no output head was recognised, and {', '.join(paths)} may be one" in notice
    for line in re.findall(r"rules=(\[.*?\)\])", notice):
        rules = eval(line, vars(muon_jax))
        assert paths[0] not in "".join(of(shapes, rules=rules)).partition("may be one")[0]


@pytest.mark.parametrize("shapes", SILENT.values(), ids=SILENT)
def test_nothing_is_noticed(shapes):
    assert of(shapes) == []


@pytest.mark.parametrize(
    "params",
    [
        jnp.ones(12),
        {"a": jnp.ones(3), "b": jnp.ones(())},
        {"embed": {"embedding": jnp.ones((9, 4))}},
    ],
    ids=["flattened", "vectors", "a table"],
)
def test_a_tree_without_a_matrix_warns(params):
    with pytest.warns(UserWarning, match="^muon_jax.muon: no parameter goes to Muon"):
        muon_jax.muon(0.1).init(params)
    muon_jax.muon(0.1, rules=[muon_jax.Rule("*", "adamw")]).init(params)


def test_muon_warns_at_init_alone_and_explain_says_so():
    params = {"l1": jnp.ones((4, 8)), "l2": jnp.ones((8, 3))}
    tx = muon_jax.muon(0.1)
    with pytest.warns(UserWarning, match=r'^muon_jax.muon: .*Rule\("l2", "adamw"\)'):
        state = tx.init(params)
    tx.update(params, state, params)
    explanation = muon_jax.explain(params, muon_jax.muon(1.0))
    (notice,) = explanation.notices
    assert notice in str(explanation)
    assert explanation.to_dict()["notices"] == [notice]
