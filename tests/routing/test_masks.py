"""Chains by hand: under a mask the rules see less, and then they are right or they refuse."""

import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from matrices import gaussian
from routes import tree_of

import muon_jax
from muon_jax.routing._route import route


def tree_of_arrays(**shapes):
    return {
        layer: {name: jnp.asarray(gaussian(*shape)) for name, shape in arrays.items()}
        for layer, arrays in shapes.items()
    }


DENSE = tree_of_arrays(dense={"kernel": (4, 6), "bias": (6,)})
CONVOLUTION = tree_of_arrays(up={"kernel": (2, 2, 4, 8), "bias": (4,)})  # `transpose_kernel`
STACK = tree_of_arrays(conv={"kernel": (6, 3, 3, 2, 4)}, norm={"scale": (6, 4)})
ATTENTION = tree_of_arrays(query={"kernel": (3, 8, 8), "bias": (3, 8)})
OUTPUT = tree_of_arrays(attn_out={"kernel": (3, 8, 8), "bias": (3, 8)})
FUSED = tree_of_arrays(qkv={"kernel": (3, 2, 4, 8), "bias": (3, 2, 4)}, norm={"scale": (8,)})
CONFIRMED = tree_of_arrays(
    qkv={"kernel": (8, 3, 2, 4), "bias": (3, 2, 4)}, out={"kernel": (2, 4, 8), "bias": (8,)}
)


def by_hand(**options):
    """Muon for the matrices, and nothing else."""
    return optax.multi_transform(
        {"muon": muon_jax.scale_by_muon(**options), "adamw": optax.set_to_zero()},
        muon_jax.label_params,
    )


def first_step(tx, params):
    return tx.update(params, tx.init(params), params)[0]


@pytest.mark.parametrize(
    ("params", "path"),
    [
        (CONVOLUTION, "up/kernel"),
        (STACK, "conv/kernel"),
        (ATTENTION, "query/kernel"),
        (OUTPUT, "attn_out/kernel"),
        (FUSED, "qkv/kernel"),
    ],
    ids=["convolution", "stack", "attention input", "attention output", "fused attention"],
)
def test_what_a_hidden_shape_decides_is_asked_for_and_then_right(params, path):
    with pytest.raises(ValueError, match=f"{path} .*masked.*axes=muon_jax.matrix_axes"):
        by_hand().init(params)
    layer, name = path.split("/")
    views = muon_jax.matrix_axes(params)
    options = {"orthogonalizer": muon_jax.polar_by_svd(), "scale": "match_rms"}
    chex.assert_trees_all_close(
        first_step(by_hand(axes=views, **options), params)[layer][name],
        muon_jax.orthogonalize_tree(params[layer][name], views[layer][name], **options),
        atol=1e-5,
    )


LOGITS = {
    "policy_head/out/kernel": {"policy_head/out/kernel": (8, 18), "norm/scale": (7,)},
    "linear/kernel": {"embed/embedding": (99, 8), "linear/kernel": (16, 99), "norm/scale": (8,)},
    "fc/kernel": {"conv/kernel": (3, 3, 3, 8), "conv/bias": (8,), "fc/kernel": (8, 10)},
}


@pytest.mark.parametrize("path", LOGITS)
def test_what_may_be_logits_is_asked_for(path):
    """What a mask hides may be as wide, or turn a filter round."""
    whole = tree_of(LOGITS[path])
    assert {leaf.path: leaf.label for leaf in jax.tree.leaves(route(whole))}[path] == "adamw"
    masked = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else optax.MaskedNode(), whole)
    with pytest.raises(ValueError, match=rf'(?s)The tree is masked.*Rule\("{path}"'):
        route(masked)


def test_an_output_layer_confirms_heads_whose_bias_is_hidden():
    told = by_hand(axes=muon_jax.matrix_axes(CONFIRMED))
    chex.assert_trees_all_close(first_step(by_hand(), CONFIRMED), first_step(told, CONFIRMED))


def test_a_hidden_bias_matters_to_no_scale_that_ignores_sides():
    for scale in ("match_rms", "update_norm", "none", muon_jax.hidden_size(8)):
        told = by_hand(axes=muon_jax.matrix_axes(DENSE), scale=scale)
        chex.assert_trees_all_close(
            first_step(by_hand(scale=scale), DENSE), first_step(told, DENSE)
        )


@pytest.mark.parametrize("scale", ["keller", "spectral", lambda rows, cols: rows])
def test_a_scale_that_looks_at_sides_wants_the_bias(scale):
    complaint = (
        f"muon_jax.scale_by_muon: scale={scale!r} depends on which side of dense/kernel is the "
        "inputs, and the biases that tell are masked. To show them, "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}.*axes=muon_jax.matrix_axes"):
        by_hand(scale=scale).init(DENSE)
    by_hand(scale=scale, axes=muon_jax.matrix_axes(DENSE)).init(DENSE)
    hidden = {"dense": DENSE["dense"] | {"bias": optax.MaskedNode()}}
    with pytest.raises(ValueError, match=r"^muon_jax.explain: scale=.*dense/kernel"):
        muon_jax.explain(hidden, scale=scale)
    square = tree_of_arrays(dense={"kernel": (4, 4), "bias": (4,)})
    by_hand(scale=scale).init(square)


def masked(params, **options):
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.masked(muon_jax.muon(0.1, **options), mask)


@pytest.mark.parametrize(
    ("params", "options"), [(CONVOLUTION, {}), (DENSE, {"scale": "keller"})], ids=["view", "scale"]
)
def test_muon_in_a_mask_says_how_to_freeze_instead(params, options):
    remedy = r"freeze by rules, with others=\{'frozen': optax.set_to_zero\(\)\}"
    with pytest.raises(ValueError, match=rf"^muon_jax.muon: .*{remedy}"):
        masked(params, **options).init(params)
    instead = muon_jax.muon(
        0.1,
        rules=[muon_jax.Rule("*/bias", "frozen")],
        others={"frozen": optax.set_to_zero()},
        **options,
    )
    ((layer, updates),) = first_step(instead, params).items()
    assert layer in params
    assert not updates["bias"].any()
    assert updates["kernel"].any()


def test_a_rule_of_ones_own_needs_no_bias_and_speaks_for_no_other_layer():
    view = muon_jax.MatrixAxes(rows=1, cols=0)
    rule = muon_jax.Rule("dense/kernel", view, name="matrix")  # as a default rule is called
    masked(DENSE, scale="keller", rules=[rule]).init(DENSE)
    two = DENSE | {"other": DENSE["dense"]}
    with pytest.raises(ValueError, match=r"which side of other/kernel is the inputs"):
        masked(two, scale="keller", rules=[rule]).init(two)
