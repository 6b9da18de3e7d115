"""QK-Clip: the paper's rule for each head, the bound on logits, and weights that stay unchanged."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import normal

from muon_jax.attention import collect_max_logits, max_attention_logits, reporting
from muon_jax.clip._clip_qk import clip_qk
from muon_jax.clip._targets import QKTarget

HEADS, WIDTH, HEAD_DIM, ROTARY, LATENT = 4, 16, 8, 4, 6


def step(tx: Any, updates: Any, params: Any, max_logits: Any) -> tuple[Any, Any]:
    """Takes the first step of a transformation; returns the parameters and the state."""
    updates, state = tx.update(updates, tx.init(params), params, max_logits=max_logits)
    return optax.apply_updates(params, updates), state


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected
    )


def tree_of(**shapes):
    """Returns a layer's weights in a tree with siblings that must not change."""
    layer = {name: normal(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}
    nested: dict = {
        "embed": normal(99, 5, WIDTH),
        "attn": {"value": {"kernel": normal(98, 3, 4, 5)}},
    }
    for name, weight in layer.items():
        module, kind = name.split("__")
        nested["attn"].setdefault(module, {})[kind] = weight
    return nested


def attention_by_kind(kind):
    """Returns the parameters of a kind of attention, its targets, and its projections."""
    kernel, bias = (WIDTH, HEADS, HEAD_DIM), (HEADS, HEAD_DIM)
    if kind in ("mha", "gqa"):
        groups = {"mha": HEADS, "gqa": 2}[kind]
        params = tree_of(
            query__kernel=kernel,
            query__bias=bias,
            key__kernel=(WIDTH, groups, HEAD_DIM),
            key__bias=(groups, HEAD_DIM),
        )
        return params, None, queries_and_keys
    if kind == "mqa":
        params = tree_of(query__kernel=kernel, query__bias=bias, key__kernel=(WIDTH, HEAD_DIM))
        return params, {"attn": QKTarget(query="query", shared_key="key")}, shared_key
    params = tree_of(
        q_content__kernel=kernel,
        q_rotary__kernel=(WIDTH, HEADS, ROTARY),
        kv_down__kernel=(WIDTH, LATENT),
        k_content__kernel=(LATENT, HEADS, HEAD_DIM),
        k_rotary__kernel=(WIDTH, ROTARY),
    )
    target = QKTarget(
        query="q_content", key="k_content", rotary_query="q_rotary", shared_key="k_rotary"
    )
    return params, {"attn": target}, latent


def queries_and_keys(layer, x):
    return tuple(
        jnp.einsum("btw,whd->bthd", x, layer[name]["kernel"]) + layer[name]["bias"][None, None]
        for name in ("query", "key")
    )


def shared_key(layer, x):
    query = (
        jnp.einsum("btw,whd->bthd", x, layer["query"]["kernel"])
        + layer["query"]["bias"][None, None]
    )
    return query, (x @ layer["key"]["kernel"])[:, :, None]


def latent(layer, x):
    contents = jnp.einsum("btw,whd->bthd", x, layer["q_content"]["kernel"])
    rotary = jnp.einsum("btw,whd->bthd", x, layer["q_rotary"]["kernel"])
    down = x @ layer["kv_down"]["kernel"]
    key = jnp.einsum("btr,rhd->bthd", down, layer["k_content"]["kernel"])
    key_rotary = (x @ layer["k_rotary"]["kernel"])[:, :, None]
    key_rotary = jnp.broadcast_to(key_rotary, rotary.shape)
    return jnp.concatenate([contents, rotary], -1), jnp.concatenate([key, key_rotary], -1)


def clipped_by_hand(kind, params, maxima, threshold):
    """Applies the paper's rule to each head, in float64."""
    params = jax.tree.map(lambda w: np.array(w, np.float64), params)
    layer = params["attn"]
    powers = {
        "mha": {"query": 0.5, "key": 0.5},
        "gqa": {"query": 1},
        "mqa": {"query": 1},
        "mla": {"q_content": 0.5, "k_content": 0.5, "q_rotary": 1},
    }[kind]
    for head, logit in enumerate(maxima):
        if logit > threshold:
            for module, power in powers.items():
                for weight in layer[module].values():
                    weight[..., head, :] *= (threshold / logit) ** power
    return params


KINDS = ["mha", "gqa", "mqa", "mla"]


@pytest.mark.parametrize("kind", KINDS)
class TestTheRule:
    def clip(self, kind):
        """Takes one step with some heads over the threshold."""
        params, targets, project = attention_by_kind(kind)
        x = normal(7, 2, 10, WIDTH)
        measure = jax.jit(lambda p: max_attention_logits(*project(p["attn"], x), is_causal=True))
        updates = jax.tree.map(lambda w: 0.1 * normal(w.size, *w.shape), params)
        stepped = optax.apply_updates(params, updates)
        maxima = measure(stepped)
        threshold = float(np.mean(maxima))
        clipped, state = jax.jit(functools.partial(step, clip_qk(threshold, targets)))(
            updates, params, {"attn": maxima}
        )
        over = np.asarray(maxima > threshold)
        assert over.any()
        assert not over.all()
        return stepped, clipped, maxima, measure(clipped), threshold, over, state

    def test_equals_the_paper(self, kind):
        stepped, clipped, maxima, _, threshold, _, _ = self.clip(kind)
        assert_close(clipped, clipped_by_hand(kind, stepped, maxima, threshold))

    def test_bounds_the_heads_that_were_over_and_no_other(self, kind):
        _, _, before, after, threshold, over, state = self.clip(kind)
        assert (after[over] <= threshold * (1 + 1e-5)).all()
        np.testing.assert_allclose(after[over], threshold, rtol=1e-5)
        np.testing.assert_array_equal(after[~over], before[~over])
        assert state.clipped_heads == over.sum()
        assert state.max_logit == before.max()


def flax_like(seed):
    weights = tree_of(
        query__kernel=(WIDTH, HEADS, HEAD_DIM),
        query__bias=(HEADS, HEAD_DIM),
        key__kernel=(WIDTH, HEADS, HEAD_DIM),
        key__bias=(HEADS, HEAD_DIM),
    )["attn"]
    del weights["value"]
    return jax.tree.map(lambda w: w + seed, weights)


@jax.jit
def updates_at_threshold_one(maxima):
    tx, params = clip_qk(1.0), flax_like(0)
    return tx.update(flax_like(1), tx.init(params), params, max_logits=maxima)


class TestWhatPasses:
    @settings(deadline=None, max_examples=50)
    @given(maxima=st.lists(st.floats(width=32), min_size=HEADS, max_size=HEADS))
    def test_the_factor_of_any_maximum(self, maxima):
        maxima = np.array(maxima, np.float32)
        updates, state = updates_at_threshold_one(maxima)
        over = (maxima > 1) & (maxima < np.inf)
        query = np.asarray(updates["query"]["kernel"])
        weight, update = flax_like(0)["query"]["kernel"], flax_like(1)["query"]["kernel"]
        np.testing.assert_array_equal(query[:, ~over], update[:, ~over])
        factor = np.sqrt(1 / maxima[over], dtype=np.float64)[:, None]
        expected = factor * (weight + update.astype(np.float64))[:, over] - weight[:, over]
        np.testing.assert_allclose(query[:, over], expected, rtol=1e-5, atol=1e-5)
        assert state.nonfinite_heads == np.sum(~(maxima < np.inf))
        assert np.isfinite(query).all()

    def test_other_parameters_are_not_even_copied(self):
        params, _, _ = attention_by_kind("mha")
        tx: Any = clip_qk(1.0)
        updates, _ = tx.update(
            params, tx.init(params), params, max_logits={"attn": np.full(HEADS, 9.0)}
        )
        assert updates["embed"] is params["embed"]
        assert updates["attn"]["value"]["kernel"] is params["attn"]["value"]["kernel"]

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
    def test_keeps_the_dtype_and_the_bits_below_the_threshold(self, dtype):
        params = jax.tree.map(lambda w: jnp.asarray(w, dtype), flax_like(0))
        grads = jax.tree.map(lambda w: jnp.asarray(w, dtype), flax_like(1))
        tx = clip_qk(100.0)
        updates, _ = tx.update(
            grads, tx.init(params), params, max_logits=np.array([100, 7, 200, -np.inf])
        )
        for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            assert update.dtype == dtype
            np.testing.assert_array_equal(update[..., [0, 1, 3], :], grad[..., [0, 1, 3], :])
            assert not np.array_equal(update[..., 2, :], grad[..., 2, :])


class TestState:
    def test_counts_over_steps(self):
        params, tx = flax_like(0), clip_qk(10.0)
        state: Any = tx.init(params)
        assert tuple(state) == (0, 0, -np.inf)
        for maxima in ([11, 20, 10, 3], [np.nan, 15, np.inf, 3]):
            _, state = tx.update(params, state, params, max_logits=np.array(maxima))
        assert state._asdict() == {"clipped_heads": 3, "nonfinite_heads": 2, "max_logit": 20}

    def test_counts_do_not_wrap_around(self):
        params, most = flax_like(0), np.iinfo(np.int32).max
        tx: Any = clip_qk(10.0)
        state = tx.init(params)._replace(clipped_heads=jnp.int32(most - 1))
        _, state = tx.update(params, state, params, max_logits=np.full(HEADS, 11.0))
        assert state.clipped_heads == most


@pytest.mark.parametrize(
    "clip", [clip_qk(100.0), optax.inject_hyperparams(clip_qk)(threshold=100.0)]
)
def test_at_the_end_of_a_chain(clip):
    maxima = np.array([400.0, 20.0, 101.0, 99.0])
    tx = optax.chain(optax.sgd(0.1), clip)
    params, _ = jax.jit(functools.partial(step, tx))(flax_like(1), flax_like(0), maxima)
    factor = np.sqrt(np.minimum(1, 100 / maxima))[:, None]
    expected = jax.tree.map(lambda w, g: (w - 0.1 * g) * factor, flax_like(0), flax_like(1))
    assert_close(params, expected)


def plain_steps(tx, weights, x):
    """Takes a step; returns the maxima before it, the parameters, and the maxima after it."""

    def forward(params):
        query, key = (
            jnp.einsum("btw,whd->bthd", x, params[name]["kernel"])
            + params[name]["bias"][None, None]
            for name in ("query", "key")
        )
        return {"": max_attention_logits(query, key)}

    before = forward(weights)
    params, _ = step(tx, jax.tree.map(jnp.zeros_like, weights), weights, before)
    return before, params, forward(params)


def linen_steps(tx, weights, x):
    model = nn.MultiHeadDotProductAttention(
        HEADS, qkv_features=HEADS * HEAD_DIM, attention_fn=reporting(nn.dot_product_attention)
    )

    def forward(params):
        variables = {"params": params}
        _, reported = model.apply(variables, x, sow_weights=True, mutable=["intermediates"])
        return collect_max_logits(reported)

    before = forward(weights)
    params, _ = step(tx, jax.tree.map(jnp.zeros_like, weights), weights, before)
    return before, params, forward(params)


def nnx_steps(tx, weights, x):
    model = nnx.MultiHeadAttention(
        HEADS,
        WIDTH,
        qkv_features=HEADS * HEAD_DIM,
        attention_fn=reporting(nnx.dot_product_attention),
        decode=False,
        rngs=nnx.Rngs(0),
    )
    nnx.update(model, weights)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        capture = nnx.capture(lambda model: model(x, sow_weights=True), nnx.Intermediate)
        maxima = collect_max_logits(capture(model)[1])
        gradients = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        optimizer.update(model, gradients, max_logits=maxima)
        return maxima

    before = train(model, optimizer)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return before, params, train(model, optimizer)


@pytest.mark.parametrize("steps", [plain_steps, linen_steps, nnx_steps])
def test_what_a_model_reports_bounds_its_next_pass(steps):
    weights = flax_like(0)
    weights["value"] = flax_like(1)["query"]
    weights["out"] = {"kernel": normal(5, HEADS, HEAD_DIM, WIDTH), "bias": normal(6, WIDTH)}
    x = normal(7, 2, 10, WIDTH)
    expected_before, _, _ = plain_steps(clip_qk(1e9), weights, x)
    threshold = float(np.mean(expected_before[""]))
    before, params, after = steps(optax.chain(optax.sgd(0.1), clip_qk(threshold)), weights, x)
    np.testing.assert_allclose(before[""], expected_before[""], rtol=1e-5)
    np.testing.assert_allclose(after[""], np.minimum(before[""], threshold), rtol=1e-5)
    expected = clipped_by_hand("mha", {"attn": weights}, before[""], threshold)["attn"]
    assert_close(params, expected)


KERNEL = np.ones((6, 4, 2))
LAYER = {"query": {"kernel": KERNEL}, "key": {"kernel": KERNEL}}
PARAMS = {"blocks": {"0": {"attn": LAYER}, "1": {"attn": LAYER}}, "head": np.ones((6, 9))}
MAXIMA = {"blocks/0/attn": np.ones(4), "blocks/1/attn": np.ones(4)}
PAIR = QKTarget(query="query", key="key")


class TestWrongInput:
    @pytest.mark.parametrize(
        ("max_logits", "message"),
        [
            (None, r"^muon_jax\.clip_qk: max_logits is missing\. Pass max_logits="),
            (MAXIMA | {"head": np.ones(4)}, "names layers without a target: 'head'"),
            ({"blocks/0/attn": np.ones(4)}, "max_logits lacks 'blocks/1/attn'"),
            (
                MAXIMA | {"blocks/1/attn": np.ones(3)},
                r"max_logits\['blocks/1/attn'\] has shape \(3,\), .*one maximum a head, \(4,\)",
            ),
        ],
    )
    def test_at_update(self, max_logits, message):
        tx = clip_qk(100.0)
        with pytest.raises(ValueError, match=message):
            tx.update(PARAMS, tx.init(PARAMS), PARAMS, max_logits=max_logits)

    def test_without_params(self):
        tx = clip_qk(100.0)
        with pytest.raises(ValueError, match="params is missing"):
            tx.update(PARAMS, tx.init(PARAMS), max_logits=MAXIMA)

    @pytest.mark.parametrize(
        ("build", "arguments", "message"),
        [
            (clip_qk, {"threshold": 0.0}, r"clip_qk\(threshold=0\.0\): give a number above 0"),
            (clip_qk, {"threshold": -1.0}, "threshold=-1.0"),
            (clip_qk, {"threshold": np.nan}, "threshold=nan"),
            (clip_qk, {"threshold": "100"}, "threshold='100'"),
            (clip_qk, {"threshold": 1.0, "targets": [PAIR]}, "give {layer path: QKTarget"),
            (clip_qk, {"threshold": 1.0, "targets": {"a": "q"}}, r"targets\['a'\]='q'"),
            (QKTarget, {"query": 3, "key": "k"}, r"QKTarget\(query=3\): give a path"),
            (QKTarget, {"query": "q"}, r"QKTarget\(key=None\): give what the query meets"),
        ],
    )
    def test_at_construction(self, build, arguments, message):
        with pytest.raises((ValueError, TypeError), match=message):
            build(**arguments)
