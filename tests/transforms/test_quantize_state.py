"""Stochastic rounding has an exact mean, so averages do not drift; states take few bytes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import covering
from matrices import gaussian

import muon_jax
from muon_jax.transforms._quantize_state import (
    Int8Blocks,
    from_blocks,
    round_to_bfloat16,
    to_blocks,
)

BLOCKS = 8
SIZE = (16, 512)
ROUNDINGS = {
    "int8": lambda x, key: from_blocks(to_blocks(x, BLOCKS, key)),
    "bfloat16": lambda x, key: round_to_bfloat16(x, key).astype(jnp.float32),
}
each_rounding = pytest.mark.parametrize("rounded", ROUNDINGS.values(), ids=ROUNDINGS)
MODEL = {
    "embed": {"embedding": jnp.asarray(gaussian(256, 64), jnp.float32)},
    "dense": {"kernel": jnp.asarray(gaussian(64, 192), jnp.float32), "bias": jnp.ones(192)},
}


def numbers():
    return jnp.asarray(gaussian(*SIZE), jnp.float32)


@each_rounding
def test_the_mean_over_many_roundings_is_the_number(rounded):
    x, count = numbers(), 1000
    keys = jax.random.split(jax.random.key(0), count)
    errors = jax.lax.map(lambda key: rounded(x, key) - x, keys)
    deviation = jnp.std(errors, axis=0)
    large = jnp.abs(x) > 0.01  # above the first code, so rounding is unbiased
    standard = jnp.abs(jnp.mean(errors, axis=0)) / (deviation + 1e-12) * count**0.5
    # Of normal numbers 95.4 % are below 2; those in 8 bits have an offset of at most 1/512 step.
    assert jnp.mean(standard[large & (deviation > 0)] < 2) > 0.94


@pytest.mark.slow
def test_an_entry_moves_by_less_than_a_step_between_codes_and_keeps_its_sign():
    x = numbers()
    back = from_blocks(to_blocks(x, BLOCKS, jax.random.key(0)))
    largest = jnp.repeat(jnp.abs(x).reshape(16, BLOCKS, -1).max(-1), 64, axis=1)
    step = (2 * jnp.sqrt(jnp.abs(x) * largest) + largest / 127) / 127 * 1.02
    assert jnp.all(jnp.abs(back - x) <= step)
    assert jnp.all(jnp.sign(back) == jnp.sign(x))


def test_only_zeros_become_zero():
    x = numbers().at[:, ::3].set(0).at[:, 1::3].multiply(1e-6)
    back = from_blocks(to_blocks(x, BLOCKS, jax.random.key(0)))
    np.testing.assert_array_equal(back == 0, x == 0)


@pytest.mark.parametrize("exponent", [-100, -60, 60, 126])
def test_every_size_of_float32_keeps_its_relative_error(exponent):
    x = numbers() / jnp.abs(numbers()).max()
    grown = from_blocks(to_blocks(x * 2.0**exponent, BLOCKS, jax.random.key(0)))
    plain = from_blocks(to_blocks(x, BLOCKS, jax.random.key(0)))
    np.testing.assert_allclose(grown * 2.0**-exponent, plain, rtol=1e-6)


@each_rounding
def test_what_is_not_finite_stays_visible(rounded):
    x = numbers().at[0, 0].set(jnp.nan).at[1, 0].set(jnp.inf)
    back = rounded(x, jax.random.key(0))
    assert not jnp.isfinite(back[0, 0])
    assert not jnp.isfinite(back[1, 0])
    assert jnp.all(jnp.isfinite(back[2:]))


def test_bfloat16_rounds_the_largest_number_to_a_finite_one():
    largest = jnp.finfo(jnp.float32).max
    assert jnp.isfinite(round_to_bfloat16(jnp.full(64, largest), jax.random.key(0))).all()


@pytest.mark.parametrize("precondition", [None, "second_moment"])
@pytest.mark.parametrize(("dtype", "share"), [("int8", 0.28), ("bfloat16", 0.505)])
def test_the_state_takes_this_share_of_its_bytes(dtype, share, precondition):
    plain = muon_jax.muon(0.1, precondition=precondition)
    sizes = [
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        for tx in (muon_jax.quantize_state(plain, dtype), plain)
        for state in [jax.eval_shape(tx.init, MODEL)]
    ]
    assert sizes[0] <= share * sizes[1]


@pytest.mark.parametrize(
    ("size", "blocks"),
    covering([(512, 8), (200, 2), (96, 1), (257, 1), (32, 1)], fast=[(512, 8), (257, 1)]),
)
def test_blocks_are_even_and_have_at_least_64_entries_if_the_axis_has(size, blocks):
    tx = muon_jax.quantize_state(optax.trace(0.9), smallest=1)
    (stored,) = jax.tree.leaves(
        tx.init(jnp.ones((3, size))).inner_state, is_leaf=lambda x: isinstance(x, Int8Blocks)
    )
    assert stored.scales.shape == (3, blocks)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_the_error_of_an_average_falls_with_the_steps_up_to_ten_thousand(dtype):
    """Independent errors fall to a quarter over 16 times as many steps; a drift would not fall."""
    mean = jnp.asarray(gaussian(16, 64), jnp.float32)
    plain = optax.ema(0.95, debias=False)
    stored = muon_jax.quantize_state(plain, dtype, smallest=1)
    few, many = 625, 10_000

    def step(carry, key):
        states, total = carry
        noisy = mean + jax.random.normal(key, mean.shape)
        expected, one = plain.update(noisy, states[0])
        found, other = stored.update(noisy, states[1])
        total += found - expected
        return ((one, other), total), total

    keys = jax.random.split(jax.random.key(1), many)
    start = (plain.init(mean), stored.init(mean)), jnp.zeros_like(mean)
    _, totals = jax.jit(lambda start: jax.lax.scan(step, start, keys))(start)
    after_few, after_many = (
        jnp.sqrt(jnp.mean((totals[count - 1] / count) ** 2)) for count in (few, many)
    )
    assert after_many < after_few / 3


@pytest.mark.parametrize(
    ("dtype", "error", "precondition"),
    covering(
        [
            ("int8", 0.04, None),
            ("int8", 0.04, "second_moment"),
            ("bfloat16", 0.015, None),
            ("bfloat16", 0.015, "second_moment"),
        ],
        fast=[("int8", 0.04, "second_moment"), ("bfloat16", 0.015, None)],
    ),
)
def test_updates_are_near_those_of_the_wrapped_transformation(dtype, error, precondition):
    plain = muon_jax.scale_by_muon(precondition=precondition)
    kernel = {"kernel": MODEL["dense"]["kernel"]}

    def last(tx):
        update = jax.jit(tx.update)
        state, step = tx.init(kernel), kernel
        for index in range(20):
            noise = {"kernel": jnp.asarray(gaussian(64, 192, seed=index), jnp.float32)}
            step, state = update(noise, state, kernel)
        return step["kernel"]

    # Each step rounds by about 1 % or 0.3 %; an average with decay 0.95 keeps 3.2 times that.
    expected = last(plain)
    found = last(muon_jax.quantize_state(plain, dtype))
    assert jnp.linalg.norm(found - expected) <= error * jnp.linalg.norm(expected)


def test_the_same_run_rounds_alike():
    tx = muon_jax.quantize_state(muon_jax.scale_by_muon())
    kernel = {"kernel": MODEL["dense"]["kernel"]}
    update = jax.jit(tx.update)
    states = [
        functools.reduce(lambda state, _: update(kernel, state)[1], range(2), tx.init(kernel))
        for _ in range(2)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_explain_says_what_stays_as_it_is_and_counts_the_bytes():
    found = muon_jax.explain(MODEL, muon_jax.quantize_state(muon_jax.muon(0.1)))
    assert any("2 arrays of fewer than 4096 entries" in notice for notice in found.notices)
    sizes = {leaf.path: leaf.state_bytes for leaf in found.leaves}
    assert sizes["dense/kernel"] == 64 * 192 + 2 * 64 * 3
    assert sizes["embed/embedding"] == 2 * (256 * 64 + 2 * 256)
    assert sizes["dense/bias"] == 2 * 4 * 192


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.1,), "quantize_state(tx=0.1): give a gradient transformation"),
        ((muon_jax.muon(0.1), "int4"), "quantize_state(dtype='int4'): choose one of 'int8', "),
        ((muon_jax.muon(0.1), "int8", 0), "quantize_state(smallest=0): give"),
    ],
)
def test_unusable_arguments_are_named(arguments, words):
    tx, *settings = arguments
    names = dict(zip(("dtype", "smallest"), settings, strict=False))
    with pytest.raises((TypeError, ValueError), match=re.escape(f"muon_jax.{words}")):
        muon_jax.quantize_state(tx, **names)
