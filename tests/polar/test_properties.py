"""The laws of the polar factor, on every orthogonalizer and every finite input.

Laws that do not concern orthogonality hold for steepest descent under any norm too.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from hypothesis import given
from hypothesis import strategies as st
from matrices import gaussian, log_uniform, polar, singular_values, with_spectrum

import muon_jax

ORTHOGONALIZERS = {
    "fast": muon_jax.newton_schulz("fast"),
    "accurate": muon_jax.newton_schulz("accurate"),
    "keller": muon_jax.newton_schulz("keller"),
    "bfloat16": muon_jax.newton_schulz(dtype="bfloat16"),
    "polar_by_svd": muon_jax.polar_by_svd(),
    "inverse_sqrt": muon_jax.inverse_sqrt(),
    "polar_to": muon_jax.polar_to(1e-3),
    "steepest_descent, p = inf": muon_jax.steepest_descent(float("inf")),
}
MAPS = ORTHOGONALIZERS | {
    f"steepest_descent, p = {p}": muon_jax.steepest_descent(p) for p in (1, 1.5, 2, 4)
}
FAST_MAPS = [name for name in MAPS if not name.endswith(("p = 2", "p = 4"))]
each_orthogonalizer = pytest.mark.parametrize("name", ORTHOGONALIZERS)
each_map = pytest.mark.parametrize("name", MAPS)
SHAPES = [(12, 12), (8, 40), (40, 8)]
WIDE = (8, 40)  # in the fast suite; each orthogonalizer compiles its transpose too
each_map_and_shape = pytest.mark.parametrize(
    ("name", "shape"),
    covering(
        itertools.product(MAPS, SHAPES),
        fast=[*((name, WIDE) for name in FAST_MAPS), *(("accurate", shape) for shape in SHAPES)],
    ),
    ids=str,
)


@functools.cache
def compiled(name: str):
    return jax.jit(MAPS[name])


def apply(name: str, matrix, dtype=jnp.float32):
    """Orthogonalises one NumPy matrix; returns NumPy's float64."""
    result = compiled(name)(jnp.asarray(np.asarray(matrix)[None]).astype(dtype))
    return np.asarray(result[0].astype(jnp.float32), np.float64)


def tolerance(name: str) -> float:
    """Returns the rounding error times the slope of the schedule at small singular values."""
    return 3e-2 if name == "bfloat16" else 2e-4


@each_map_and_shape
def test_transposition_commutes(name, shape):
    matrix = log_uniform(*shape, 30)
    np.testing.assert_allclose(apply(name, matrix.T), apply(name, matrix).T, atol=tolerance(name))


@each_map_and_shape
def test_rotations_commute(name, shape):
    matrix = log_uniform(*shape, 30)
    left, right = (polar(gaussian(size, size, seed=size)) for size in shape)
    rotated = apply(name, left @ matrix @ right)
    np.testing.assert_allclose(rotated, left @ apply(name, matrix) @ right, atol=tolerance(name))


@each_map
def test_a_batch_is_a_loop(name):
    sizes = np.array([1e-3, 1, 1e3])[:, None, None]
    batch = jnp.asarray(sizes * gaussian(3, 8, 20), jnp.float32)
    together = compiled(name)(batch)
    for matrix, result in zip(batch, together, strict=True):
        np.testing.assert_allclose(result, apply(name, matrix), atol=tolerance(name))


@each_orthogonalizer
def test_singular_values_end_near_one(name):
    values = singular_values(apply(name, log_uniform(16, 32, 100)))
    assert values.min() > 0.5
    assert values.max() < 1.25


@each_map
def test_zero_stays_zero(name):
    assert not apply(name, np.zeros((4, 6))).any()


@pytest.mark.parametrize("name", [name for name in MAPS if name != "polar_to"])
def test_directions_that_are_missing_stay_missing(name):
    values = singular_values(apply(name, with_spectrum([1.0, 0.8, 0, 0, 0, 0], 6, 9)))
    assert (values[2:] < 0.05).all()
    if name in ORTHOGONALIZERS:
        assert (np.abs(values[:2] - 1) < 0.3).all()


@each_map
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_broken_matrix_breaks_no_other(name, poison):
    batch = gaussian(3, 4, 6).astype(np.float32)
    broken = batch.copy()
    broken[1, 2, 3] = poison
    healthy, result = compiled(name)(jnp.asarray(batch)), compiled(name)(jnp.asarray(broken))
    assert jnp.isnan(result[1]).all()
    np.testing.assert_array_equal(result[0], healthy[0])
    np.testing.assert_array_equal(result[2], healthy[2])


MAGNITUDES = {
    "float32": (1e-42, 1e-38, 1e-30, 1e-10, 1e10, 1e30, 1e37),
    "bfloat16": (1e-38, 1e-30, 1e-10, 1e10, 1e30, 1e37),
    "float16": (1e-5, 1e-3, 1e3, 1e4),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    covering(
        itertools.product(MAPS, MAGNITUDES),
        fast=[
            *((name, "float32") for name in MAPS),
            *(("accurate", dtype) for dtype in MAGNITUDES),
        ],
    ),
)
def test_a_positive_factor_changes_nothing_at_any_magnitude(name, dtype):
    matrix = gaussian(6, 10)
    for scale in MAGNITUDES[dtype]:
        scaled = np.asarray(matrix * scale, dtype)
        # The polar factor of the rounded matrix, because subnormals have few digits.
        held = np.asarray(scaled, np.float64) / scale
        expected = apply(name, np.asarray(held, np.float32))
        np.testing.assert_allclose(apply(name, scaled, dtype), expected, atol=2e-2)


@each_map
def test_powers_of_two_change_not_one_bit(name):
    matrix = gaussian(6, 10).astype(np.float32)
    for exponent in (-90, -7, 7, 90):
        np.testing.assert_array_equal(apply(name, np.ldexp(matrix, exponent)), apply(name, matrix))


@each_orthogonalizer
@given(
    seed=st.integers(0, 2**16),
    log_condition=st.floats(0, 9),
    log_scale=st.floats(-37, 36),
    rank=st.integers(1, 6),
)
def test_finite_input_gives_finite_output_of_bounded_size(
    name, seed, log_condition, log_scale, rank
):
    values = np.geomspace(1, 10**-log_condition, 6) * (np.arange(6) < rank)
    matrix = with_spectrum(values, 6, 10, seed) * 10**log_scale
    result = apply(name, matrix.astype(np.float32))
    assert np.isfinite(result).all()
    assert singular_values(result).max() < 1.3


@pytest.mark.parametrize("name", ["fast", "accurate", "bfloat16", "polar_by_svd"])
@given(scale=st.floats(-3, 3))
def test_rows_of_very_different_size_stay_finite(name, scale):
    matrix = gaussian(6, 10) * np.geomspace(1, 10.0 ** (10 * scale), 6)[:, None]
    assert np.isfinite(apply(name, matrix.astype(np.float32))).all()


@each_orthogonalizer
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_batches_pass_through(name, shape):
    assert ORTHOGONALIZERS[name](jnp.zeros(shape)).shape == shape


@each_orthogonalizer
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
def test_other_numbers_are_refused_in_words(name, dtype):
    with pytest.raises(TypeError, match=f"the matrices are {jnp.dtype(dtype).name}"):
        ORTHOGONALIZERS[name](jnp.ones((1, 2, 2), dtype))


@each_orthogonalizer
def test_orthogonalizers_are_values(name):
    one = ORTHOGONALIZERS[name]
    assert one == type(one)(**{field: getattr(one, field) for field in one.__dataclass_fields__})
    assert len({one, one}) == 1
