"""By default every head of attention is a matrix of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian

import muon_jax

D, HEADS, SIZE = 12, 3, 4
KERNEL = (D, HEADS, SIZE)
TOGETHER = muon_jax.Rule("*/{query,key,value}/kernel", muon_jax.MatrixAxes(0, (1, 2)))


def attention(shape=KERNEL):
    return {
        "attention": {
            name: {"kernel": jnp.asarray(gaussian(*shape, seed=seed), jnp.float32)}
            for seed, name in enumerate(("query", "key", "value"))
        }
    }


def updates_of(params, **options):
    tx = muon_jax.muon(1.0, weight_decay=0.0, orthogonalizer=muon_jax.polar_by_svd(), **options)
    return -tx.update(params, tx.init(params), params)[0]["attention"]["query"]["kernel"]


def rms(array):
    return float(jnp.sqrt(jnp.mean(array**2)))


def test_every_head_is_orthogonal():
    update = updates_of(attention())
    for head in range(HEADS):
        singular = np.linalg.svd(update[:, head], compute_uv=False)
        np.testing.assert_allclose(singular, 0.2 * D**0.5, rtol=1e-5)


@pytest.mark.parametrize("shape", [KERNEL, (12, 6, 4), (6, 3, 8), (4, 2, 9)])
def test_a_head_has_the_update_size_of_the_whole_projection(shape):
    params = attention(shape)
    assert rms(updates_of(params)) == pytest.approx(rms(updates_of(params, rules=[TOGETHER])))


@pytest.mark.parametrize("options", [{"rules": [TOGETHER]}, {"scale": "match_rms"}])
def test_a_rule_or_another_scale_keeps_the_heads_together(options):
    whole = updates_of(attention(), **options).reshape(D, -1)
    np.testing.assert_allclose(np.linalg.svd(whole, compute_uv=False), 0.2 * D**0.5, rtol=1e-5)


def test_views_that_the_user_gives_are_kept():
    axes = jax.tree.map(lambda _: muon_jax.MatrixAxes(0, (1, 2)), attention())
    np.testing.assert_array_equal(
        updates_of(attention(), axes=axes), updates_of(attention(), rules=[TOGETHER])
    )


def test_a_loss_tells_heads_as_well():
    def loss(params, x):
        q, k, v = (jnp.tensordot(x, leaf["kernel"], 1) for leaf in params["attention"].values())
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        return jnp.einsum("hqk,khd->qhd", weights, v).sum()

    traced = muon_jax.trace_axes(loss, attention(), jnp.ones((5, D)))
    np.testing.assert_array_equal(updates_of(attention(), axes=traced), updates_of(attention()))


def test_other_layers_of_three_axes_stay_whole():
    params = {
        "attention": {"query": {"kernel": jnp.ones(KERNEL)}, "out": {"kernel": jnp.ones((3, 4, 9))}}
    }
    leaves = {leaf.path: leaf for leaf in muon_jax.explain(params, muon_jax.muon(0.1)).leaves}
    assert leaves["attention/out/kernel"].matrices == ((1, 12, 9),)
    assert leaves["attention/query/kernel"].matrices == ((HEADS, D, SIZE),)


def test_explain_says_so_and_shows_the_factor():
    (leaf, *_) = muon_jax.explain(attention(), muon_jax.muon(0.1)).leaves
    assert "each head is orthogonalised by itself" in leaf.why
    assert leaf.axes == muon_jax.MatrixAxes(0, 2)
    assert leaf.scale == pytest.approx((0.2 * D**0.5,))


def test_a_state_has_the_same_form_either_way():
    states = [muon_jax.muon(0.1, rules=rules).init(attention()) for rules in ([], [TOGETHER])]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize("kind", [muon_jax.Soap(), muon_jax.SecondMoment(factored=True)], ids=repr)
def test_a_preconditioner_sees_the_whole_projection(kind):
    params = attention()
    tx = muon_jax.muon(1.0, precondition=kind)
    together = muon_jax.muon(1.0, precondition=kind, rules=[TOGETHER])
    shapes = [jax.tree.map(jnp.shape, each.init(params)) for each in (tx, together)]
    assert shapes[0] == shapes[1]
