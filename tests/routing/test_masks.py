"""Masked trees need the views of the whole tree, unless all their arrays are 2-D."""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from matrices import gaussian
from routes import tree_of

import muon_jax


def arrays(**shapes):
    return {
        layer: {name: jnp.asarray(gaussian(*shape)) for name, shape in arrays.items()}
        for layer, arrays in shapes.items()
    }


MLP = arrays(
    up={"kernel": (4, 6), "bias": (6,)},
    down={"kernel": (6, 4), "bias": (4,)},
    head={"kernel": (4, 9)},
    norm={"scale": (4,)},
)
HEADS = arrays(query={"kernel": (3, 8, 8), "bias": (3, 8)}, norm={"scale": (3, 8)})


def by_hand(**options):
    """Returns the chain of the README: Muon for the matrices, and nothing else."""
    return optax.multi_transform(
        {"muon": muon_jax.scale_by_muon(**options), "adamw": optax.set_to_zero()},
        muon_jax.label_params,
    )


def first_step(tx, params):
    return tx.update(params, tx.init(params), params)[0]


@pytest.mark.parametrize("scale", ["match_rms", "keller", "spectral"])
def test_the_plain_chain_works_on_matrices(scale):
    told = by_hand(axes=muon_jax.matrix_axes(MLP), scale=scale)
    chex.assert_trees_all_close(first_step(by_hand(scale=scale), MLP), first_step(told, MLP))


def test_more_than_two_axes_need_the_whole_tree_and_are_then_right():
    problem = "the tree is masked at 'query/kernel', but the rules need the whole tree"
    remedy = re.escape("Pass axes=muon_jax.matrix_axes(params)")
    with pytest.raises(ValueError, match=rf"{problem}\. {remedy}"):
        by_hand().init(HEADS)
    views = muon_jax.matrix_axes(HEADS)
    options = {"orthogonalizer": muon_jax.polar_by_svd(), "scale": "match_rms"}
    step = first_step(by_hand(axes=views, **options), HEADS)
    kernel, view = HEADS["query"]["kernel"], views["query"]["kernel"]
    alone = muon_jax.orthogonalize_tree(kernel, view, **options)
    chex.assert_trees_all_close(step["query"]["kernel"], alone, atol=1e-5)


def test_muon_in_a_mask_takes_the_views_of_the_whole_tree():
    """Masked gradients pass unchanged, so no parameter is frozen."""
    mask = jax.tree.map(lambda leaf: leaf.ndim > 2, HEADS)
    with pytest.raises(ValueError, match=r"^muon_jax.muon: the tree is masked") as caught:
        optax.masked(muon_jax.muon(0.1), mask).init(HEADS)
    (axes,) = re.findall(r"Pass axes=(.*)\.$", str(caught.value))
    views = eval(axes, {"muon_jax": muon_jax, "params": HEADS})
    step = first_step(optax.masked(muon_jax.muon(0.1, axes=views), mask), HEADS)
    whole = first_step(muon_jax.muon(0.1), HEADS)
    chex.assert_trees_all_close(step["query"]["kernel"], whole["query"]["kernel"])
    chex.assert_trees_all_equal(step["query"]["bias"], HEADS["query"]["bias"])


def test_a_rule_of_ones_own_needs_no_other_leaf():
    masked = {"mix": jnp.ones((2, 3, 4)), "bias": optax.MaskedNode()}
    view = muon_jax.MatrixAxes(rows=-2, cols=-1)
    assert muon_jax.matrix_axes(masked, rules=[muon_jax.Rule("mix", view)])["mix"] == view


def test_a_pattern_may_fit_what_a_mask_hides():
    masked = {"up": {"kernel": jnp.ones((3, 4)), "bias": optax.MaskedNode()}}
    labels = muon_jax.label_params(masked, rules=[muon_jax.Rule("*/bias", "frozen")])
    assert labels["up"]["kernel"] == "muon"


def test_nothing_is_left_where_a_mask_hides_all():
    masked = {"a": optax.MaskedNode(), "b": None}
    assert muon_jax.label_params(masked) == masked


def test_the_rules_of_a_whole_tree_need_no_arrays():
    assert jax.tree.leaves(muon_jax.label_params(tree_of({"up": (3, 4)}))) == ["muon"]
