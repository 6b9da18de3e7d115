"""Targets of QK-Clip: every layout of heads, inferred targets, and targets that raise errors."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from matrices import normal

from muon_jax.clip._clip_qk import clip_qk
from muon_jax.clip._targets import QKPart, QKTarget
from muon_jax.views import MatrixAxes, Split

LAYERS, WIDTH, HEADS, HEAD_DIM = 3, 16, 4, 8


def step(tx: Any, updates: Any, params: Any, max_logits: Any) -> Any:
    """Takes the first step of a transformation; returns the parameters."""
    updates, _ = tx.update(updates, tx.init(params), params, max_logits=max_logits)
    return optax.apply_updates(params, updates)


SCANNED = (LAYERS, WIDTH, HEADS, HEAD_DIM)


def in_parts(path: str, axes: MatrixAxes | None = None) -> QKTarget:
    """Returns targets for queries and keys that are the first two parts of one kernel."""
    return QKTarget(query=QKPart(path, axes), key=QKPart(path, axes, part=1))


def alike(axes: MatrixAxes) -> QKTarget:
    return QKTarget(query=QKPart("q", axes), key=QKPart("k", axes))


LAYOUTS = {
    # name: (from query, key, value (layers, inputs, heads, head_dim) to the parameters, target)
    "flax": (lambda q, k, v: {"query": q, "key": k, "value": v}, None),
    "flax, declared": (
        lambda q, k, v: {"query": q, "key": k, "value": v},
        QKTarget(query="query", key="key"),
    ),
    "layers second": (
        lambda q, k, v: {"q": q.swapaxes(0, 1), "k": k.swapaxes(0, 1)},
        alike(MatrixAxes(rows=0, cols=(2, 3))),
    ),
    "heads first": (
        lambda q, k, v: {"q": q.transpose(2, 0, 1, 3), "k": k.transpose(2, 0, 1, 3)},
        alike(MatrixAxes(rows=2, cols=(0, 3))),
    ),
    "heads last": (
        lambda q, k, v: {"q": q.swapaxes(2, 3), "k": k.swapaxes(2, 3)},
        alike(MatrixAxes(rows=1, cols=(3, 2))),
    ),
    "flat": (
        lambda q, k, v: {"q": q.reshape(LAYERS, WIDTH, -1), "k": k.reshape(LAYERS, WIDTH, -1)},
        alike(MatrixAxes(rows=-2, cols=-1)),
    ),
    "torch, layers last": (
        lambda q, k, v: {
            "q": q.transpose(2, 3, 1, 0).reshape(-1, WIDTH, LAYERS),
            "k": k.transpose(2, 3, 1, 0).reshape(-1, WIDTH, LAYERS),
        },
        alike(MatrixAxes(rows=1, cols=0)),
    ),
    "qkv on an axis": (lambda q, k, v: {"qkv": np.stack([q, k, v], 2)}, None),
    "qkv on an axis, declared": (
        lambda q, k, v: {"qkv": np.stack([q, k, v], 2)},
        in_parts("qkv", MatrixAxes(rows=1, cols=(2, 3, 4), split=3)),
    ),
    "qkv in one axis": (
        lambda q, k, v: {"qkv": np.stack([q, k, v], 2).reshape(LAYERS, WIDTH, -1)},
        in_parts("qkv", MatrixAxes(rows=-2, cols=-1, split=3)),
    ),
    "qkv of every head together": (
        lambda q, k, v: {"qkv": np.stack([q, k, v], 3).reshape(LAYERS, WIDTH, -1)},
        in_parts("qkv", MatrixAxes(-2, -1, Split((HEAD_DIM,) * 3, interleaved=True))),
    ),
    "heads of q, k and v in a row": (
        lambda q, k, v: {"qkv": np.concatenate([q, k, v], 2)},
        in_parts("qkv", MatrixAxes(rows=-3, cols=(-2, -1), split=3)),
    ),
    "key and value side by side": (
        lambda q, k, v: {"q": q, "kv": np.concatenate([k, v], 3)},
        QKTarget(
            query="q",
            key=QKPart("kv", MatrixAxes(-3, (-2, -1), Split((HEAD_DIM,) * 2, interleaved=True))),
        ),
    ),
    "unequal parts": (
        lambda q, k, v: {"qkv": np.concatenate([q, k, v[:, :, :2]], 2)},
        in_parts("qkv", MatrixAxes(-3, (-2, -1), split=(HEADS * HEAD_DIM,) * 2 + (2 * HEAD_DIM,))),
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
    targets = None if target is None else {"attn": target}
    clipped = step(clip_qk(0.5, targets), zero, params, {"attn": maxima})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        clipped,
        {"attn": layout(query * root, key * root, value)},
    )


OUT = np.ones((HEADS * HEAD_DIM, WIDTH))  # its shape gives the width of queries

RECOGNISED = {
    # name: from query, key, value (inputs, heads, head_dim) and their biases to the parameters
    "flax": lambda w, b: {
        name: {"kernel": w[i], "bias": b[i]} for i, name in enumerate(("query", "key", "value"))
    },
    "flat": lambda w, b: {
        name: {"kernel": w[i].reshape(WIDTH, -1), "bias": b[i].ravel()}
        for i, name in enumerate(("q_proj", "k_proj", "v_proj"))
    },
    "equinox": lambda w, b: {
        name: {"weight": w[i].reshape(WIDTH, -1).T, "bias": b[i].ravel()}
        for i, name in enumerate(("query_proj", "key_proj", "value_proj"))
    },
    "haiku": lambda w, b: {
        f"~/{name}": {"w": w[i].reshape(WIDTH, -1), "b": b[i].ravel()}
        for i, name in enumerate(("query", "key", "value"))
    },
    "bare arrays": lambda w, b: {
        name: array
        for i, of in enumerate("qkv")
        for name, array in ((f"w_{of}", w[i]), (f"b_{of}", b[i]))
    },
    "torch": lambda w, b: {
        "in_proj_weight": np.concatenate([each.reshape(WIDTH, -1).T for each in w]),
        "in_proj_bias": np.concatenate([each.ravel() for each in b]),
        "out_proj": {"weight": OUT.T},
    },
    "names with dots": lambda w, b: {
        f"self.{name}.{kind}": array
        for i, name in enumerate(("q_proj", "k_proj"))
        for kind, array in (("weight", w[i].reshape(WIDTH, -1).T), ("bias", b[i].ravel()))
    },
    "qkv on an axis": lambda w, b: {"qkv": {"kernel": np.stack(w, 1), "bias": np.stack(b)}},
    "qkv in front": lambda w, b: {"qkv": np.stack(w)},
    "qkv in one axis": lambda w, b: {
        "qkv": {"kernel": np.concatenate([each.reshape(WIDTH, -1) for each in w], 1)},
        "out": {"kernel": OUT},
    },
    "key and value in one axis": lambda w, b: {
        "to_q": {"kernel": w[0].reshape(WIDTH, -1)},
        "to_kv": {"kernel": np.concatenate([each.reshape(WIDTH, -1) for each in w[1:]], 1)},
    },
}
"""Layers of which nothing but the largest logits is given."""


@pytest.mark.parametrize("name", RECOGNISED)
def test_attention_that_routing_knows_needs_no_target(name):
    weights, biases = normal(0, 3, WIDTH, HEADS, HEAD_DIM), normal(1, 3, HEADS, HEAD_DIM)
    maxima = np.array([4.0, 0.1, 2.0, 0.4])
    factors = np.ones((3, HEADS, 1))
    factors[:2] = np.sqrt(np.minimum(1, 0.5 / maxima))[:, None]
    params = {"attn": RECOGNISED[name](weights, biases)}
    where = "attn/self" if name == "names with dots" else "attn/~" if name == "haiku" else "attn"
    zero = jax.tree.map(np.zeros_like, params)
    clipped = step(clip_qk(0.5), zero, params, {where: maxima})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        clipped,
        {"attn": RECOGNISED[name](weights * factors[:, None], biases * factors)},
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_flat_keys_that_heads_share_stay(groups):
    params = {
        "q": np.ones((WIDTH, 32)),
        "k": np.ones((WIDTH, 8 * groups)),
        "v": np.ones((WIDTH, 8)),
    }
    zero = jax.tree.map(np.zeros_like, params)
    clipped = step(clip_qk(1.0), zero, params, np.array([4.0, 1.0, 2.0, 1.0]))
    np.testing.assert_allclose(clipped["q"][0, ::8], [1 / 4, 1, 1 / 2, 1])
    np.testing.assert_array_equal(clipped["k"], 1)
    with pytest.raises(ValueError, match=r"shape \(3,\), which does not fit .*\('heads',\)"):
        step(clip_qk(1.0), zero, params, np.ones(3))


def test_a_kernel_that_two_views_fit_wants_a_target():
    params = {"attn": {"query_key_value": {"kernel": np.ones((8, 24))}}}
    views = (
        r"targets=\{'attn': QKTarget\(query=QKPart\('query_key_value', MatrixAxes\(rows=0, .*3\)\)"
    )
    with pytest.raises(ValueError, match=f"cannot tell how .*{views}, key=.*part=1"):
        clip_qk(100.0).init(params)


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
DEEP = LAYER | {"deep": np.ones((5, 6, 4, 2))}
PARAMS = {"blocks": {"0": {"attn": DEEP}, "1": {"attn": LAYER}}, "head": np.ones((6, 9))}
PAIR = QKTarget(query="query", key="key")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"blocks/*/mlp": PAIR}, r"targets\['blocks/\*/mlp'\] matches no layer"),
        ({"*/attn": PAIR, "blocks/0/*": PAIR}, "two targets match the layer 'blocks/0/attn'"),
        (
            {"*/attn": QKTarget(query="query", key="k")},
            r"layer 'blocks/0/attn' has no parameter 'k'\. It has .*blocks/0/attn/key/kernel",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", MatrixAxes(0, (1, 3))), key="key")},
            r"MatrixAxes\(rows=0, cols=\(1, 3\)\) does not fit 'blocks/0/attn/query/kernel'",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", MatrixAxes(0, (1, 2), 3)), key="key")},
            "its cols are 8 wide. Give a split whose parts fill that width exactly",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", part=1), key="key")},
            r"MatrixAxes\(rows=0, cols=\(1, 2\)\) of 'blocks/0/attn/query/kernel' has no part 1",
        ),
        (
            {"*/attn": QKTarget(query="query", key=QKPart("key", MatrixAxes(1, (0, 2))))},
            r"heads or layers of 'blocks/0/attn' do .* has heads \{'query': 4, 'key': 6\}",
        ),
        (
            {"*/attn": QKTarget(query=QKPart("query", MatrixAxes(0, 1)), key="key")},
            "heads or layers of 'blocks/0/attn' do not go together",
        ),
        (
            {
                "*/attn": QKTarget(
                    query=QKPart("query", MatrixAxes(0, (1, 2))),
                    key=QKPart("deep", MatrixAxes(-3, (-2, -1))),
                )
            },
            "heads or layers of 'blocks/0/attn' do not go together",
        ),
        (
            {"*/attn": QKTarget(query="query", rotary_query="query", shared_key="key")},
            "overlap in 'blocks/0/attn/query/kernel'. Give all one view, and each its own part",
        ),
        (
            {"*/attn": QKTarget(query="deep", key="key")},
            r"cannot tell how 'blocks/0/attn/deep' of shape \(5, 6, 4, 2\) holds its heads\. "
            r"Declare it, such as targets=\{'blocks/0/attn': QKTarget\("
            r"query=QKPart\('deep', MatrixAxes\(rows=-3, cols=\(-2, -1\)\)\), "
            r"key=QKPart\('key', MatrixAxes\(rows=-3, cols=\(-2, -1\)\)\)\)\}",
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


def test_parameters_that_are_no_biases():
    params = {"attn": LAYER | {"query": {"kernel": KERNEL, "lora": np.ones((6, 2))}}}
    message = r"lora': \(6, 2\)\}.*not all are biases.* Name the kernel alone, query='query/kernel'"
    with pytest.raises(ValueError, match=message):
        clip_qk(100.0).init(params)


@pytest.mark.parametrize(
    ("argument", "value", "kind", "remedy"),
    [
        ("axes", (0, 1), TypeError, r"a view, such as MatrixAxes\(rows=-3, cols=\(-2, -1\)\)"),
        ("axes", MatrixAxes(0, 1, Split(2, of="rows")), ValueError, "split the columns"),
        ("part", 0.0, ValueError, "the index of a part"),
        ("part", True, ValueError, "the index of a part"),
        ("part", -1, ValueError, "the index of a part"),
    ],
)
def test_parts_that_are_none(argument, value, kind, remedy):
    with pytest.raises(kind, match=rf"muon_jax\.QKPart\({argument}=.*\): .*{remedy}"):
        QKPart("query", **{argument: value})


def test_nothing_to_infer():
    with pytest.raises(ValueError, match=r"found no attention .*\. Declare the layers"):
        clip_qk(100.0).init({"dense": {"kernel": np.ones((3, 3))}})
