"""Targets of QK-Clip: every layout of the same heads, what is inferred, and what does not fit."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from matrices import normal

from muon_jax.clip._clip_qk import clip_qk
from muon_jax.clip._targets import QKPart, QKTarget

LAYERS, WIDTH, HEADS, HEAD_DIM = 3, 16, 4, 8


def step(tx: Any, updates: Any, params: Any, max_logits: Any) -> Any:
    """The parameters after the first step of a transformation."""
    updates, _ = tx.update(updates, tx.init(params), params, max_logits=max_logits)
    return optax.apply_updates(params, updates)


SCANNED = (LAYERS, WIDTH, HEADS, HEAD_DIM)

LAYOUTS = {
    # name: (from query, key, value (layers, inputs, heads, head_dim) to the parameters, target)
    "flax": (
        lambda q, k, v: {"query": q, "key": k, "value": v},
        QKTarget(query="query", key="key", layer_axis=0),
    ),
    "layers second": (
        lambda q, k, v: {"query": q.swapaxes(0, 1), "key": k.swapaxes(0, 1)},
        QKTarget(query="query", key="key", layer_axis=1),
    ),
    "heads first": (
        lambda q, k, v: {"q": q.transpose(2, 0, 1, 3), "k": k.transpose(2, 0, 1, 3)},
        QKTarget(query=QKPart("q", head_axis=0), key=QKPart("k", head_axis=0), layer_axis=1),
    ),
    "flat": (
        lambda q, k, v: {"q": q.reshape(LAYERS, WIDTH, -1), "k": k.reshape(LAYERS, WIDTH, -1)},
        QKTarget(
            query=QKPart("q", fused=(-1, (HEADS, HEAD_DIM))),
            key=QKPart("k", fused=(-1, (HEADS, HEAD_DIM))),
            layer_axis=0,
        ),
    ),
    "torch, layers last": (
        lambda q, k, v: {
            "q": q.transpose(2, 3, 1, 0).reshape(-1, WIDTH, LAYERS),
            "k": k.transpose(2, 3, 1, 0).reshape(-1, WIDTH, LAYERS),
        },
        QKTarget(
            query=QKPart("q", fused=(0, (HEADS, HEAD_DIM)), head_axis=0),
            key=QKPart("k", fused=(0, (HEADS, HEAD_DIM)), head_axis=0),
            layer_axis=2,
        ),
    ),
    "qkv on an axis": (
        lambda q, k, v: {"qkv": np.stack([q, k, v], 2)},
        QKTarget(
            query=QKPart("qkv", stretch=(-3, 0, 1)),
            key=QKPart("qkv", stretch=(-3, 1, 2)),
            layer_axis=0,
        ),
    ),
    "qkv in one axis": (
        lambda q, k, v: {"qkv": np.stack([q, k, v], 2).reshape(LAYERS, WIDTH, -1)},
        QKTarget(
            query=QKPart("qkv", fused=(-1, (3, HEADS, HEAD_DIM)), stretch=(-3, 0, 1)),
            key=QKPart("qkv", fused=(-1, (3, HEADS, HEAD_DIM)), stretch=(-3, 1, 2)),
            layer_axis=0,
        ),
    ),
    "qkv of every head together": (
        lambda q, k, v: {"qkv": np.stack([q, k, v], 3).reshape(LAYERS, WIDTH, -1)},
        QKTarget(
            query=QKPart("qkv", fused=(-1, (HEADS, 3, HEAD_DIM)), head_axis=-3, stretch=(-2, 0, 1)),
            key=QKPart("qkv", fused=(-1, (HEADS, 3, HEAD_DIM)), head_axis=-3, stretch=(-2, 1, 2)),
            layer_axis=0,
        ),
    ),
    "heads of q, k and v in a row": (
        lambda q, k, v: {"qkv": np.concatenate([q, k, v], 2)},
        QKTarget(
            query=QKPart("qkv", stretch=(-2, 0, HEADS)),
            key=QKPart("qkv", stretch=(2, HEADS, 2 * HEADS)),
            layer_axis=0,
        ),
    ),
    "key and value side by side": (
        lambda q, k, v: {"q": q, "kv": np.concatenate([k, v], 3)},
        QKTarget(query="q", key=QKPart("kv", stretch=(-1, 0, HEAD_DIM)), layer_axis=0),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_weights(name):
    layout, target = LAYOUTS[name]
    query, key, value = (normal(seed, *SCANNED) for seed in range(3))
    maxima = np.abs(normal(3, LAYERS, HEADS))
    root = np.sqrt(np.minimum(1, 0.5 / maxima))[:, None, :, None]
    params = {"attn": layout(query, key, value)}
    zero = jax.tree.map(np.zeros_like, params)
    clipped = step(clip_qk(0.5, {"attn": target}), zero, params, {"attn": maxima})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        clipped,
        {"attn": layout(query * root, key * root, value)},
    )


@pytest.mark.parametrize("pattern", ["decoder/~/attn", "decoder.*.attn", "*/attn"])
def test_layers_are_named_as_rules_name_parameters(pattern):
    weights = {"query": normal(0, 1, 8, 2, 4)[0], "key": normal(1, 1, 8, 2, 4)[0]}
    params = {"decoder/~/attn": weights}
    tx = clip_qk(1.0, {pattern: QKTarget(query="query", key="key")})
    zero = jax.tree.map(np.zeros_like, params)
    clipped = step(tx, zero, params, {"decoder/~/attn": np.array([4.0, 0.5])})
    halved = clipped["decoder/~/attn"]["query"] / weights["query"]
    np.testing.assert_allclose(halved, np.broadcast_to([[[0.5], [1.0]]], (8, 2, 4)), rtol=1e-6)


def test_scanned_layers_are_separate_layers():
    weights = {"query": {"kernel": normal(0, *SCANNED), "bias": normal(1, LAYERS, HEADS, 8)}}
    weights["key"] = jax.tree.map(lambda w: w + 1, weights["query"])
    maxima = np.abs(normal(3, LAYERS, HEADS))
    separate = {str(i): {"attn": jax.tree.map(lambda w, i=i: w[i], weights)} for i in range(LAYERS)}
    together = step(clip_qk(0.5), {"attn": weights}, {"attn": weights}, {"attn": maxima})
    maxima = {f"{i}/attn": maxima[i] for i in range(LAYERS)}
    apart = step(clip_qk(0.5), separate, separate, maxima)
    restacked = jax.tree.map(lambda *w: np.stack(w), *(apart[str(i)] for i in range(LAYERS)))
    jax.tree.map(np.testing.assert_array_equal, together, restacked)


def test_inferred_qkv_kernels():
    params = {
        "one": {"qkv": {"kernel": normal(0, WIDTH, 3, HEADS, HEAD_DIM)}},
        "many": {"qkv": {"kernel": normal(0, LAYERS, WIDTH, 3, HEADS, HEAD_DIM)}},
    }
    maxima = {"one": np.full(HEADS, 4.0), "many": np.full((LAYERS, HEADS), 4.0)}
    zero = jax.tree.map(np.zeros_like, params)
    clipped = step(clip_qk(1.0), zero, params, maxima)
    for layer, axis in (("one", 1), ("many", 2)):
        ratio = np.asarray(clipped[layer]["qkv"]["kernel"] / params[layer]["qkv"]["kernel"])
        for part, factor in enumerate((0.5, 0.5, 1)):
            np.testing.assert_allclose(ratio.take(part, axis), factor, rtol=1e-5)


@pytest.mark.parametrize("norm", ["query_ln", "k_norm", "_q_layernorm", "norm_q", "qk_norm"])
def test_layers_that_normalise_have_no_target(norm):
    layer = {"query": {"kernel": np.ones((4, 2, 2))}, "key": {"kernel": np.ones((4, 2, 2))}}
    params = {"plain": layer, "normalised": layer | {norm: {"scale": np.ones(2)}}}
    step(clip_qk(1.0), params, params, {"plain": np.ones(2)})
    message = r"without a target: 'normalised'\. .* query-key norms"
    with pytest.raises(ValueError, match=message):
        step(clip_qk(1.0), params, params, {"plain": np.ones(2), "normalised": np.ones(2)})


def test_one_layer_as_the_whole_tree():
    params = {name: {"kernel": np.ones((4, 2, 2))} for name in ("query", "key")}
    clipped = step(clip_qk(1.0), params, params, np.array([8.0, 1.0]))
    np.testing.assert_allclose(clipped["query"]["kernel"][0, :, 0], [2 / 8**0.5, 2])


def test_a_query_that_meets_both_keys_takes_the_whole_factor():
    params = {"q": np.ones((6, 4, 3)), "k": np.ones((6, 4, 2)), "shared": np.ones((6, 1))}
    target = QKTarget(query="q", key="k", shared_key="shared")
    zero = jax.tree.map(np.zeros_like, params)
    clipped = step(clip_qk(1.0, {"": target}), zero, params, np.array([4.0, 1.0, 1.0, 2.0]))
    np.testing.assert_allclose(clipped["q"][0, :, 0], [1 / 4, 1, 1, 1 / 2])
    np.testing.assert_array_equal(clipped["k"], 1)
    np.testing.assert_array_equal(clipped["shared"], 1)


KERNEL = np.ones((6, 4, 2))
LAYER = {"query": {"kernel": KERNEL}, "key": {"kernel": KERNEL}}
PARAMS = {"blocks": {"0": {"attn": LAYER}, "1": {"attn": LAYER}}, "head": np.ones((6, 9))}
PAIR = QKTarget(query="query", key="key")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"blocks/*/mlp": PAIR}, r"targets\['blocks/\*/mlp'\] matches no layer"),
        ({"*/attn": PAIR, "blocks/0/*": PAIR}, "two targets match the layer 'blocks/0/attn'"),
        (
            {"*/attn": QKTarget(query="query", key="k")},
            "layer 'blocks/0/attn' has no parameter 'k'. It has blocks/0/attn/key/kernel",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", head_axis=3), key="key")},
            r"'blocks/0/attn/query/kernel' of shape \(6, 4, 2\) does not have the axes of",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", fused=(-1, (2, 2))), key="key")},
            "does not have the axes of",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", stretch=(-1, 1, 3)), key="key")},
            "does not have the axes of",
        ),
        (
            {"*/attn": QKTarget(query="query", key=QKPart("key", head_axis=0))},
            r"heads of 'blocks/0/attn' do not go together: \{'query': 4, 'key': 6\}",
        ),
        (
            {"*/attn": QKTarget(query="query", key="key", layer_axis=1)},
            "axis 1 of the parameters of 'blocks/0/attn' does not count layers",
        ),
        (
            {"*/attn": QKTarget(query="query", rotary_query="query", shared_key="key")},
            "overlap in 'blocks/0/attn/query/kernel'. Give each its own stretch",
        ),
    ],
)
def test_targets_that_do_not_fit(targets, message):
    with pytest.raises(ValueError, match=message):
        clip_qk(100.0, targets).init(PARAMS)


def test_a_norm_that_a_mask_hides_still_has_its_effect():
    params = {"plain": LAYER, "normalised": LAYER | {"query_ln": {"scale": np.ones(2)}}}
    masked = optax.masked(clip_qk(1.0), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
    clipped = step(masked, params, params, {"plain": np.full(4, 4.0)})
    np.testing.assert_array_equal(clipped["normalised"]["query"]["kernel"], 2)
    np.testing.assert_allclose(clipped["plain"]["query"]["kernel"], 2 * np.sqrt(1 / 4))


def test_a_mask_over_a_bias_is_refused():
    params = {"attn": LAYER | {"query": {"kernel": KERNEL, "bias": np.ones((4, 2))}}}
    masked = optax.masked(clip_qk(1.0), lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree))
    message = r"a mask hides 'attn/query/bias', .* 'attn' scales\. Let it see all parameters"
    with pytest.raises(ValueError, match=message):
        masked.init(params)


def test_parameters_that_count_different_heads():
    params = {"attn": LAYER | {"query": {"kernel": KERNEL, "lora": np.ones((6, 2))}}}
    with pytest.raises(ValueError, match=r"count different heads: .*lora': 6"):
        clip_qk(100.0).init(params)


@pytest.mark.parametrize(
    ("argument", "value", "kind", "remedy"),
    [
        ("head_axis", "heads", TypeError, "the number of the axis that counts heads"),
        ("fused", 3, ValueError, r"\(axis, shape\)"),
        ("fused", (-1, 8), ValueError, r"\(axis, shape\)"),
        ("fused", (-1, ()), ValueError, r"\(axis, shape\)"),
        ("fused", (-1, (4, 0)), ValueError, r"\(axis, shape\)"),
        ("fused", (None, (4, 2)), ValueError, r"\(axis, shape\)"),
        ("stretch", (0, 1), ValueError, r"\(axis, start, stop\)"),
        ("stretch", (0, 1, 2.0), ValueError, r"\(axis, start, stop\)"),
        ("stretch", 3, ValueError, r"\(axis, start, stop\)"),
    ],
)
def test_parts_that_are_none(argument, value, kind, remedy):
    with pytest.raises(kind, match=rf"muon_jax\.QKPart\({argument}=.*\): give {remedy}"):
        QKPart("query", **{argument: value})


def test_nothing_to_infer():
    with pytest.raises(ValueError, match=r"found no attention .*\. Declare the layers"):
        clip_qk(100.0).init({"dense": {"kernel": np.ones((3, 3))}})
