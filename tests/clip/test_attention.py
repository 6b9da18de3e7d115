"""Maxima that Flax layers report: equal in NNX and Linen, scanned, rematerialised, shared."""

import functools
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from matrices import normal

from muon_jax import attention

HEADS, WIDTH, LAYERS = 2, 8, 3


def projections(*layers):
    """Returns the weights of one or several attention layers, in the tree of Flax."""
    inner = {"kernel": (WIDTH, HEADS, WIDTH // HEADS), "bias": (HEADS, WIDTH // HEADS)}
    outer = {"kernel": (HEADS, WIDTH // HEADS, WIDTH), "bias": (WIDTH,)}
    shapes = {"query": inner, "key": inner, "value": inner, "out": outer}
    return {
        name: {
            kind: normal(seed + 4 * (kind == "bias"), *layers, *shape)
            for kind, shape in leaves.items()
        }
        for seed, (name, leaves) in enumerate(shapes.items())
    }


def causal_maxima(weights, x):
    """Returns the largest logits of the dense matrix."""
    query, key = (
        np.einsum("btw,whd->bthd", x, weights[name]["kernel"]) + weights[name]["bias"]
        for name in ("query", "key")
    )
    logits = np.einsum("bqhd,bkhd->hbqk", query, key) / np.sqrt(WIDTH // HEADS)
    seen = np.tri(x.shape[1], dtype=bool)
    return logits[..., seen].max(axis=(1, 2))


class NNXBlock(nnx.Module):
    def __init__(self, rngs, attention_fn):
        self.attn = nnx.MultiHeadAttention(
            HEADS, WIDTH, decode=False, attention_fn=attention_fn, rngs=rngs
        )

    def __call__(self, x):
        return x + self.attn(x, is_causal=True, sow_weights=True)


class NNXStack(nnx.Module):
    def __init__(self, rngs, attention_fn):
        build = nnx.vmap(lambda rngs: NNXBlock(rngs, attention_fn))
        self.blocks = build(rngs.split(LAYERS))

    def __call__(self, x):
        step = nnx.remat(lambda block, x: block(x))
        return nnx.scan(step, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


class LinenBlock(nn.Module):
    attention_fn: Callable

    @nn.compact
    def __call__(self, x, _=None):
        attend = nn.MultiHeadDotProductAttention(HEADS, attention_fn=self.attention_fn, name="attn")
        mask = nn.make_causal_mask(x[..., 0])
        return x + attend(x, mask=mask, sow_weights=True), None


class LinenStack(nn.Module):
    attention_fn: Callable

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(LinenBlock),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        return stack(self.attention_fn, name="blocks")(x)


def run_nnx(kind, weights, x, attention_fn):
    model = kind(nnx.Rngs(0), attention_fn)
    nnx.update(model, weights)
    return nnx.jit(nnx.capture(lambda model, x: model(x), nnx.Intermediate))(model, x)


def run_linen(kind, weights, x, attention_fn):
    model = kind(attention_fn)
    apply = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    (y, _), intermediates = apply({"params": weights}, x)
    return y, intermediates


FLAX = [
    pytest.param(run_nnx, NNXBlock, NNXStack, nnx.dot_product_attention, id="nnx"),
    pytest.param(run_linen, LinenBlock, LinenStack, nn.dot_product_attention, id="linen"),
]


@pytest.mark.parametrize(("run", "block", "stack", "attention_fn"), FLAX)
class TestReporting:
    def test_a_layer_computes_the_same_and_reports(self, run, block, stack, attention_fn):
        weights, x = projections(), normal(9, 2, 6, WIDTH)
        expected, _ = run(block, {"attn": weights}, x, attention_fn)
        y, intermediates = run(
            block, {"attn": weights}, x, attention.reporting(attention_fn, block_size=4)
        )
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        maxima = attention.collect_max_logits(intermediates)
        assert list(maxima) == ["attn"]
        np.testing.assert_allclose(maxima["attn"], causal_maxima(weights, x), rtol=1e-5)
        assert len(jax.tree.leaves(intermediates)) == 1  # and no T×T attention weights

    def test_scan_and_remat_stack_the_layers(self, run, block, stack, attention_fn):
        weights, x = jax.tree.map(lambda w: 0.3 * w, projections(LAYERS)), normal(9, 2, 6, WIDTH)
        report = attention.reporting(attention_fn)
        y, intermediates = run(stack, {"blocks": {"attn": weights}}, x, report)
        maxima = attention.collect_max_logits(intermediates)
        for layer in range(LAYERS):
            of_layer = jax.tree.map(lambda w, i=layer: w[i], weights)
            x, intermediates = run(block, {"attn": of_layer}, x, report)
            expected = attention.collect_max_logits(intermediates)["attn"]
            np.testing.assert_allclose(maxima["blocks/attn"][layer], expected, rtol=1e-5)
        np.testing.assert_allclose(y, x, rtol=1e-5)


def test_a_layer_called_twice_reports_the_larger():
    class Twice(nnx.Module):
        def __init__(self, rngs, attention_fn):
            self.block = NNXBlock(rngs, attention_fn)

        def __call__(self, x):
            self.block(3 * x)
            return self.block(x)

    report = attention.reporting(nnx.dot_product_attention)
    weights, x = projections(), normal(9, 2, 6, WIDTH)
    _, twice = run_nnx(Twice, {"block": {"attn": weights}}, x, report)
    _, once = run_nnx(NNXBlock, {"attn": weights}, 3 * x, report)
    np.testing.assert_allclose(
        attention.collect_max_logits(twice)["block/attn"],
        attention.collect_max_logits(once)["attn"],
        rtol=1e-6,
    )


def test_what_flax_does_not_know_is_told_to_reporting():
    class Layer:
        def sow(self, collection, name, value, init_fn, reduce_fn):
            self.sown = {collection: {name: reduce_fn(init_fn(), value)}}

    layer, x = Layer(), jnp.asarray(normal(0, 2, 6, HEADS, 4))
    local = functools.partial(jax.nn.dot_product_attention, local_window_size=1)
    attention.reporting(local, local_window_size=1)(x, x, x, module=layer)
    maxima = attention.collect_max_logits(layer.sown)[""]
    np.testing.assert_allclose(
        maxima, attention.max_attention_logits(x, x, local_window_size=1), rtol=1e-6
    )


def test_of_several_calls_the_largest_counts():
    sown = {"intermediates": {"attn": {"max_logits": (np.array([3.0, 1.0]), np.array([2.0, 4.0]))}}}
    np.testing.assert_array_equal(attention.collect_max_logits(sown)["attn"], [3, 4])


def test_nobody_reported():
    message = r"no layer reported 'max_logits'\. Build .* sow_weights=True"
    with pytest.raises(ValueError, match=message):
        attention.collect_max_logits({"attn": {"attention_weights": np.ones(3)}})


def test_reporting_needs_a_function():
    with pytest.raises(TypeError, match=r"reporting\(attention_fn=None\): give a function"):
        attention.reporting(None)  # pyright: ignore[reportArgumentType]


def test_flax_is_not_imported():
    code = "import sys; sys.modules['flax'] = None; import muon_jax.attention"
    subprocess.run([sys.executable, "-c", code], check=True)
