"""Largest attention logits: equal to those of the dense matrix, in memory linear in T."""

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import normal

from muon_jax import attention
from muon_jax.clip import _max_logits


def measured(query, key, **options):
    """Compiles `max_attention_logits`."""
    arrays = {name: options.pop(name) for name in ("mask", "segment_ids") if name in options}
    measure = functools.partial(attention.max_attention_logits, **options)
    return jax.jit(measure)(query, key, **arrays)


@functools.partial(jax.jit, static_argnums=3)
def masked_in_blocks_of_four(query, key, mask, is_causal):
    return attention.max_attention_logits(query, key, mask=mask, is_causal=is_causal, block_size=4)


def dense_logits(query, key, visible: Any = True, scale=None):
    """Returns all logits in float64, −inf where masked: (batch…, heads, queries, keys)."""
    query, key = (np.asarray(x, np.float64) for x in (query, key))
    key = np.repeat(key, query.shape[-2] // key.shape[-2], axis=-2)
    logits = np.einsum("...qhd,...khd->...hqk", query, key)
    logits *= query.shape[-1] ** -0.5 if scale is None else scale
    return np.where(visible, logits, -np.inf)


def dense_maxima(query, key, visible: Any = True, scale=None):
    logits = dense_logits(query, key, visible, scale)
    return logits.max(axis=(*range(logits.ndim - 3), -2, -1))


def causal(queries, keys):
    return np.tri(queries, keys, dtype=bool)


def window(length, left, right):
    distance = np.arange(length) - np.arange(length)[:, None]
    return (distance >= -left) & (distance <= right)


SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3], [5, 5, 5, 5, 5, 5, 5, 5, 5, 9, 9]])
PADDING = np.array([1] * 7 + [0] * 4, np.float32)
SAME_SEGMENT = SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]


class TestAgainstTheDenseMatrix:
    @pytest.mark.parametrize("block_size", [4, 512])
    @pytest.mark.parametrize(
        ("options", "visible"),
        [
            ({}, True),
            ({"is_causal": True}, causal(11, 11)),
            ({"local_window_size": (2, 1)}, window(11, 2, 1)),
            ({"local_window_size": 3, "is_causal": True}, window(11, 3, 0)),
            ({"mask": PADDING[None, None, None]}, (PADDING > 0)),
            ({"mask": PADDING}, (PADDING > 0)),
            ({"mask": causal(11, 11)}, causal(11, 11)),
            ({"segment_ids": SEGMENTS}, SAME_SEGMENT),
            (
                {"segment_ids": SEGMENTS, "is_causal": True, "mask": PADDING[:, None]},
                SAME_SEGMENT & causal(11, 11) & (PADDING > 0)[:, None],
            ),
        ],
    )
    def test_masks(self, options, visible, block_size):
        query, key = normal(0, 2, 11, 4, 8), normal(1, 2, 11, 2, 8)
        maxima = measured(query, key, block_size=block_size, **options)
        np.testing.assert_allclose(maxima, dense_maxima(query, key, visible), rtol=1e-5)

    @pytest.mark.parametrize(
        ("query_shape", "key_shape"),
        [
            ((5, 3, 8), (5, 3, 8)),  # no batch
            ((2, 3, 5, 4, 8), (2, 3, 5, 1, 8)),  # two batch axes, one key for all heads
            ((2, 9, 4, 8), (2, 4, 4, 8)),  # cross-attention
            ((2, 1, 4, 8), (2, 7, 4, 8)),  # decoding
        ],
    )
    def test_shapes(self, query_shape, key_shape):
        query, key = normal(0, *query_shape), normal(1, *key_shape)
        maxima = measured(query, key, is_causal=True, block_size=3)
        visible = causal(query_shape[-3], key_shape[-3])
        np.testing.assert_allclose(maxima, dense_maxima(query, key, visible), rtol=1e-5)

    @hypothesis.settings(deadline=None, max_examples=40)
    @hypothesis.given(
        seed=st.integers(0, 2**31),
        share=st.floats(0, 1),
        shape=st.sampled_from([(7, 9), (1, 9), (7, 1)]),
        leading=st.sampled_from([(), (2, 3)]),
        is_causal=st.booleans(),
    )
    def test_random_masks(self, seed, share, shape, leading, is_causal):
        query, key = normal(0, 2, 7, 3, 4), normal(1, 2, 9, 3, 4)
        mask = np.random.default_rng(seed).random((*leading, *shape)) < share
        visible = mask & causal(7, 9) if is_causal else mask
        maxima = masked_in_blocks_of_four(query, key, mask, is_causal)
        np.testing.assert_allclose(maxima, dense_maxima(query, key, visible), rtol=1e-5)

    def test_scale(self):
        query, key = normal(0, 2, 5, 4, 8), normal(1, 2, 5, 4, 8)
        maxima = measured(query, key, scale=1.0)
        np.testing.assert_allclose(maxima, dense_maxima(query, key, scale=1.0), rtol=1e-5)

    def test_soft_cap_is_what_the_softmax_receives(self):
        query, key = 5 * normal(0, 2, 5, 4, 8), normal(1, 2, 5, 4, 8)
        maxima = measured(query, key, soft_cap=3.0)
        np.testing.assert_allclose(
            maxima, np.max(3 * np.tanh(dense_logits(query, key) / 3), axis=(0, 2, 3)), rtol=1e-5
        )

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_half_precision_accumulates_in_float32(self, dtype):
        query = np.full((1, 1, 1, 64), 200, dtype)
        maxima = measured(query, query)
        assert maxima.dtype == jnp.float32
        assert maxima == 320_000  # 64 · 200² / √64, over float16's 65504


class TestExtremes:
    def test_a_head_that_sees_nothing(self):
        query = normal(0, 2, 5, 2, 4)
        mask = np.array([1, 0])[:, None, None]
        maxima = measured(query, query, mask=mask, soft_cap=30.0)
        assert np.isfinite(maxima[0])
        assert np.isneginf(maxima[1])

    def test_a_visible_nan_stays_in_its_head(self):
        query = normal(0, 2, 5, 2, 4)
        query[0, 3, 1, 2] = np.nan
        maxima = measured(query, normal(1, 2, 5, 2, 4), block_size=2)
        np.testing.assert_array_equal(np.isnan(maxima), [False, True])

    def test_lists_stand_for_arrays(self):
        query = normal(1, 1, 3, 2, 4)
        lists = attention.max_attention_logits(
            query, query, mask=[True, False, True], segment_ids=[[0, 0, 1]]
        )
        seen = measured(query, query, mask=np.array([1, 0, 1]), segment_ids=np.array([[0, 0, 1]]))
        np.testing.assert_array_equal(lists, seen)

    def test_a_masked_nan_does_not_count(self):
        key = normal(0, 2, 5, 2, 4)
        key[:, 4] = np.nan
        maxima = measured(normal(1, 2, 5, 2, 4), key, mask=np.arange(5) < 4, block_size=2)
        assert np.isfinite(maxima).all()


class TestTransformations:
    def test_no_gradient_flows(self):
        query, key = normal(0, 2, 5, 2, 4), normal(1, 2, 5, 2, 4)
        gradients = jax.grad(
            lambda q, k: jnp.sum(attention.max_attention_logits(q, k)), argnums=(0, 1)
        )(query, key)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)

    def test_scan_over_layers_with_remat(self):
        layers = 0.3 * normal(
            0, 3, 2, 4, 4
        )  # a query and a key projection for each of three layers
        inputs = normal(1, 2, 6, 4)

        @jax.checkpoint
        def layer(x, weights):
            query, key = jnp.einsum("btd,ndk->nbtk", x, weights).reshape(2, 2, 6, 2, 2)
            maxima = measured(query, key, is_causal=True, block_size=4)
            return x + jax.nn.dot_product_attention(query, key, key).reshape(x.shape), maxima

        def loss(weights, step):
            x, maxima = step(layer, inputs, weights)
            return jnp.sum(x**2), maxima

        def unrolled(layer, x, weights):
            maxima = []
            for one in weights:
                x, of_one = layer(x, one)
                maxima.append(of_one)
            return x, jnp.stack(maxima)

        (_, scanned), gradient = jax.jit(
            jax.value_and_grad(functools.partial(loss, step=jax.lax.scan), has_aux=True)
        )(layers)
        (_, separate), expected = jax.jit(
            jax.value_and_grad(functools.partial(loss, step=unrolled), has_aux=True)
        )(layers)
        assert scanned.shape == (3, 2)
        np.testing.assert_allclose(scanned, separate, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


class TestCost:
    HEADS, HEAD_DIM = 2, 64

    def compiled(self, length, **options):
        x = jax.ShapeDtypeStruct((1, length, self.HEADS, self.HEAD_DIM), jnp.float32)
        measure = functools.partial(attention.max_attention_logits, **options)
        return jax.jit(measure).lower(x, x).compile()

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_memory_is_at_most_linear_in_the_length(self, is_causal):
        held = []
        for length in (512, 1024, 2048):
            memory = self.compiled(length, block_size=64, is_causal=is_causal).memory_analysis()
            assert memory is not None
            held.append(memory.temp_size_in_bytes)
        assert held[1] <= 2.1 * held[0]
        assert held[2] <= 2.1 * held[1]
        assert held[2] < 0.2 * 4 * self.HEADS * 2048**2  # the logits themselves

    @pytest.mark.parametrize(("is_causal", "share"), [(False, 1.0), (True, 0.5 + 1 / 16)])
    def test_products_cost_no_more_than_one_dense_product(self, monkeypatch, is_causal, share):
        def unrolled(body, starts):  # XLA counts the body of a loop once
            return jnp.stack([body(pair) for pair in zip(*starts, strict=True)])

        length, dense = 512, 2 * 512**2 * self.HEAD_DIM * self.HEADS
        monkeypatch.setattr(_max_logits.lax, "map", unrolled)
        cost = self.compiled(length, block_size=64, is_causal=is_causal).cost_analysis()
        assert cost is not None
        comparisons = 8 * length**2 * self.HEADS  # positions and maxima, d times fewer
        assert share * dense <= cost["flops"] <= share * dense + comparisons


X = np.zeros((2, 5, 4, 8))


def ill_fitting(query_shape, key_shape):
    """Returns a case of queries and keys whose shapes do not match."""
    return (
        {"query": np.zeros(query_shape), "key": np.zeros(key_shape)},
        f": query {query_shape} and key {key_shape} do not fit together",
    )


@pytest.mark.parametrize(
    ("wrong", "start"),
    [
        ill_fitting((2, 5, 4, 8), (2, 5, 3, 8)),
        ill_fitting((2, 5, 4, 8), (1, 5, 4, 8)),
        ill_fitting((2, 5, 4, 8), (2, 5, 4, 6)),
        ill_fitting((2, 5, 4, 8), (5, 4, 8)),
        ill_fitting((4, 8), (4, 8)),
        ill_fitting((2, 0, 4, 8), (2, 5, 4, 8)),
        ill_fitting((2, 5, 4, 8), (2, 0, 4, 8)),
        ill_fitting((2, 5, 4, 8), (2, 5, 0, 8)),
        (
            {"mask": np.ones((2, 5, 5))},
            ": mask (2, 5, 5) does not broadcast to the logits (2, 4, 5, 5)",
        ),
        (
            {"mask": np.ones((3, 2, 4, 5, 5))},
            ": mask (3, 2, 4, 5, 5) does not broadcast to the logits (2, 4, 5, 5)",
        ),
        *(
            (
                {"key": key, "segment_ids": np.ones(shape)},
                f": segment_ids {shape} do not number the positions of query (2, 5, 4, 8) and "
                f"key {key.shape} alike",
            )
            for key, shape in [(X[:, :3], (2, 5)), (X, (2, 4)), (X, (3, 5))]
        ),
        *(
            ({"local_window_size": sides}, f"(local_window_size={sides!r})")
            for sides in [(1, -1), -1, 1.5, (1, 2, 3), ((1, 2),), "left"]
        ),
        *(
            ({name: value}, f"({name}={value!r})")
            for name, value in [("scale", -1.0), ("scale", 0.0), ("soft_cap", 0)]
        ),
        ({"block_size": 0}, "(block_size=0)"),
    ],
)
def test_wrong_input(wrong, start):
    with pytest.raises(ValueError, match="max_attention_logits") as caught:
        attention.max_attention_logits(**({"query": X, "key": X} | wrong))
    assert str(caught.value).startswith(f"muon_jax.attention.max_attention_logits{start}")


def test_the_smallest_that_fits_is_taken():
    one = np.ones((1, 1, 1))
    assert attention.max_attention_logits(one, one, local_window_size=0) == 1
    assert attention.max_attention_logits(one, one, local_window_size=(0, 0), block_size=1) == 1
