"""Every finite gradient of every format gives a finite update, down to the last subnormal."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from hypothesis import given
from hypothesis import strategies as st
from matrices import gaussian, singular_values, with_spectrum
from transforms import ATTENTION, AXES

import muon_jax
from muon_jax import recipes
from muon_jax.polar._schedules import NAMES

FORMATS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
each_format = pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS.keys())
ROUNDED = ("bfloat16", "float16")  # TF32 has the digits of float16, and CPUs do not have TF32

# Largest results of published schedules: `cubic` is designed to reach 1.3, rounding adds to it.
LARGEST_SINGULAR_VALUE = 1.32


def extremes(rows, cols, dtype):
    """Returns matrices at the ends of a format's range, and singular ones over all of it."""
    limits = jnp.finfo(dtype)
    largest, smallest = float(limits.max), float(limits.smallest_subnormal)
    signs = np.sign(gaussian(rows, cols))
    single = np.zeros((rows, cols))
    single[rows // 2, cols // 3] = 1
    spread = np.geomspace(smallest, largest, rows * cols)
    kinds = {
        "all largest": np.full((rows, cols), largest),
        "largest, random signs": signs * largest,
        "all smallest": np.full((rows, cols), smallest),
        "smallest, random signs": signs * smallest,
        "smallest normal": signs * float(limits.tiny),
        "one entry, largest": single * largest,
        "one entry, smallest": single * smallest,
        "largest beside smallest": np.where(single, largest, smallest),
        "one column, repeated": signs[:, :1] * np.full((rows, cols), largest),
        "two columns, repeated": gaussian(rows, 2).repeat(cols, axis=1)[:, :cols],
        "orthogonal, largest": np.linalg.qr(gaussian(cols, cols))[0][:rows] * largest,
        "diagonal over the whole range": np.eye(rows, cols)
        * np.geomspace(largest, smallest, rows)[:, None],
        "entries over the whole range": signs
        * np.random.default_rng(0).permutation(spread).reshape(rows, cols),
        "zero": np.zeros((rows, cols)),
    }
    return {
        name: jnp.asarray(np.clip(kind, -largest, largest), dtype) for name, kind in kinds.items()
    }


def hard(size):
    """Returns ill-conditioned and rank-deficient square matrices, small and large."""
    corner = np.zeros((size, size))
    corner[:3, :3] = gaussian(3, 3)
    three_rows = gaussian(size, size) * (np.arange(size) < 3)[:, None]
    rows_of_all_sizes = np.sign(gaussian(size, size)) * np.exp(-80 * np.abs(gaussian(size, size)))
    spectra = [np.geomspace(1, 1 / ratio, size) for ratio in (1e1, 1e3, 1e6)]
    one_large, one_small = (np.where(np.arange(size) > 0, *pair) for pair in ((1e-2, 1), (1, 1e-2)))
    return jnp.asarray(
        [
            np.ones((size, size)),
            np.eye(size),
            np.diag(np.geomspace(1, 1e-2, size)),
            corner,
            three_rows,
            rows_of_all_sizes,
            gaussian(size, size),
            gaussian(size, 1) * gaussian(1, size, seed=1),
            gaussian(size, 2).repeat(size // 2, axis=1),
            *(with_spectrum(values, size, size) for values in (*spectra, one_large, one_small)),
        ],
        jnp.float32,
    )


def check_bounded(results, largest=LARGEST_SINGULAR_VALUE):
    for result in np.asarray(results.astype(jnp.float32)):
        assert np.isfinite(result).all()
        assert singular_values(result).max(initial=0) < largest


ORTHOGONALIZERS = {
    **{name: muon_jax.newton_schulz(name) for name in NAMES},
    "frobenius": muon_jax.newton_schulz(normalization="frobenius"),
    "inverse_sqrt": muon_jax.inverse_sqrt(),
    "inverse_sqrt, 60 steps": muon_jax.inverse_sqrt(60),
    "polar_by_svd": muon_jax.polar_by_svd(),
    "steepest_descent, p = inf": muon_jax.steepest_descent(float("inf")),
    "polar_to": muon_jax.polar_to(1e-3),
    "polar_to, strictly": muon_jax.polar_to(1e-5, max_steps=60),
}


EVERY_KIND = ["fast", "frobenius", "inverse_sqrt", "polar_by_svd", "polar_to"]
EVERY_KIND += ["steepest_descent, p = inf"]


@pytest.mark.parametrize("name", covering(ORTHOGONALIZERS, fast=EVERY_KIND))
def test_every_orthogonalizer_is_finite_at_the_ends_of_every_format(name):
    apply = jax.jit(ORTHOGONALIZERS[name])
    for dtype in FORMATS.values():
        check_bounded(apply(jnp.stack(list(extremes(6, 10, dtype).values()))))


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    covering(
        itertools.product(NAMES, ROUNDED),
        fast=[
            *((name, "bfloat16") for name in ("fast", "accurate", "keller", "polar_express")),
            *(("cubic", arithmetic) for arithmetic in ROUNDED),
        ],
    ),
)
def test_rounded_products_keep_every_schedule_bounded(name, arithmetic):
    check_bounded(jax.jit(muon_jax.newton_schulz(name, dtype=arithmetic))(hard(64)))


@pytest.mark.parametrize("name", ["fast", "accurate", "cubic", "polar_express", "inverse_sqrt"])
def test_singular_matrices_keep_every_kind_of_iteration_bounded(name):
    check_bounded(jax.jit(ORTHOGONALIZERS[name])(hard(64)))


@pytest.mark.parametrize("arithmetic", ROUNDED)
def test_rounded_products_are_finite_at_the_ends_of_a_format(arithmetic):
    apply = jax.jit(muon_jax.newton_schulz(dtype=arithmetic))
    for dtype in FORMATS.values():
        check_bounded(apply(jnp.stack(list(extremes(64, 80, dtype).values()))))


def steps_at_the_ends(tx, dtype):
    """Yields updates and state over steps that reverse, repeat and mix the extremes."""
    ends = extremes(6, 10, dtype)
    reverse = jax.tree.map(jnp.negative, ends)
    mixed = dict(zip(ends, reversed(ends.values()), strict=True))
    state, update = tx.init(ends), jax.jit(tx.update)
    for grads in (ends, ends, reverse, mixed):
        updates, state = update(grads, state, ends)
        yield updates, state


def assert_finite(*trees):
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("dtype", "momentum_dtype"),
    covering(
        itertools.product(FORMATS, (None, *FORMATS)),
        fast=[
            ("float32", None),
            ("float32", "float16"),
            ("bfloat16", "bfloat16"),
            ("float16", "float32"),
        ],
    ),
)
def test_the_whole_update_is_finite_with_momentum_in_any_format(dtype, momentum_dtype):
    tx = muon_jax.scale_by_muon(axes=AXES, momentum=0.5, momentum_dtype=momentum_dtype)
    for updates, state in steps_at_the_ends(tx, dtype):
        assert_finite(updates, state)


@each_format
@pytest.mark.parametrize("decay", covering([0.0, 0.5, 0.99, 0.999], fast=[0.0, 0.999]))
def test_an_average_of_the_largest_number_is_that_number(dtype, decay):
    largest = jnp.finfo(dtype).max
    params = jnp.full((4, 6), largest, dtype)
    for tx in (
        muon_jax.scale_by_muon(axes=AXES, momentum=decay),
        muon_jax.scale_by_momentum_rms(momentum=decay),
    ):
        state = tx.init(params)._replace(mu=params)
        updates, state = jax.jit(tx.update)(params, state)
        assert_finite(updates)
        expected = np.full((4, 6), largest, np.float64)
        np.testing.assert_allclose(np.asarray(state.mu, np.float64), expected, rtol=1e-6)


@pytest.mark.parametrize(("stored", "given"), [("float16", 1e30), ("bfloat16", 3.4e38)])
def test_momentum_beyond_its_format_saturates_and_an_infinite_one_shows(stored, given):
    tx = muon_jax.scale_by_muon(axes=AXES, momentum=0.0, momentum_dtype=stored)
    grads = jnp.full((2, 3), given, jnp.float32)
    _, state = tx.update(grads, tx.init(grads))
    assert (state.mu == jnp.finfo(stored).max).all()
    _, state = tx.update(grads.at[0, 0].set(jnp.inf), state)
    assert jnp.isinf(state.mu[0, 0])


@each_format
@pytest.mark.parametrize(
    "scale", covering(["update_norm", "keller", "spectral"], fast=["update_norm"])
)
def test_every_scale_is_finite_at_the_ends(dtype, scale):
    for updates, _ in steps_at_the_ends(muon_jax.scale_by_muon(axes=AXES, scale=scale), dtype):
        assert_finite(updates)


@each_format
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}, {"eps": 0.0}], ids=str)
def test_momentum_of_unit_rms_is_finite_and_no_larger_than_that(dtype, options):
    tx = muon_jax.scale_by_momentum_rms(momentum=0.5, **options)
    for updates, state in steps_at_the_ends(tx, dtype):
        assert_finite(updates, state)
        for leaf in jax.tree.leaves(updates):
            assert jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32)))) < 1.01


RECIPES = {
    "muon": muon_jax.muon,
    "keller": recipes.keller,
    "moonlight": recipes.moonlight,
    "torch": recipes.torch,
    "optax": recipes.optax,
    "procrustes": recipes.procrustes,
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    covering(
        itertools.product(RECIPES, FORMATS),
        fast=[("muon", "float32"), ("muon", "bfloat16"), *((name, "float16") for name in RECIPES)],
    ),
)
def test_a_recipe_is_finite_at_the_ends(name, dtype):
    params = {"dense": {"kernel": jnp.ones((6, 10), dtype), "bias": jnp.ones(60, dtype)}}
    tx = RECIPES[name](0.1)
    state, update = tx.init(params), jax.jit(tx.update)
    for end in extremes(6, 10, dtype).values():
        grads = {"dense": {"kernel": end, "bias": end.ravel()}}
        updates, state = update(grads, state, params)
        assert_finite(updates)


@each_format
@pytest.mark.parametrize("logit", [1e-30, 1e4, 3.4e38, -3.4e38])
def test_clip_qk_is_finite_for_every_logit(dtype, logit):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), ATTENTION)
    tx = muon_jax.clip_qk(100.0)
    maxima = {"attn": jnp.array([logit, 0.0])}
    for size in (jnp.finfo(dtype).smallest_subnormal, 1.0, jnp.finfo(dtype).max / 8):
        grads = jax.tree.map(lambda leaf, size=size: jnp.sign(leaf) * size, params)
        updates, state = tx.update(grads, tx.init(params), params, max_logits=maxima)
        assert_finite(updates, state)


factors = jax.jit(muon_jax.newton_schulz())


@functools.cache
def compiled_step():
    tx = muon_jax.scale_by_muon(axes=AXES, momentum=0.9, momentum_dtype="float16")
    return tx, jax.jit(tx.update)


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=12, max_size=12
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_finite_gradients_make_a_non_finite_update(steps):
    tx, update = compiled_step()
    state = tx.init(jnp.zeros((3, 4)))
    for entries in steps:
        updates, state = update(jnp.asarray(entries, jnp.float32).reshape(3, 4), state)
        assert_finite(updates, state)


@given(
    st.lists(st.integers(0, 2**16 - 1), min_size=12, max_size=12),
    st.sampled_from(["float16", "bfloat16"]),
)
def test_no_bits_of_a_half_precision_matrix_make_a_non_finite_factor(bits, dtype):
    matrix = np.array(bits, np.uint16).view(jnp.dtype(dtype)).reshape(1, 3, 4)
    matrix = jnp.where(jnp.isfinite(matrix), matrix, jnp.zeros_like(matrix))
    check_bounded(factors(matrix))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "complex64"])
def test_formats_that_hold_no_average_are_refused(dtype):
    with pytest.raises(ValueError, match=f"momentum_dtype='{dtype}'.: give float32, bfloat16"):
        muon_jax.scale_by_muon(momentum_dtype=dtype)
