"""The design of schedules: minimax polynomials, their composition, and the lower end."""

import math
import runpy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_jax.polar import _minimax
from muon_jax.polar._minimax import (
    compose,
    design,
    evaluate,
    max_error,
    odd_minimax,
    rms_error,
    stretch,
)

DEGREES = (3, 5, 7, 9, 13)
INTERVALS = ((1e-3, 1.0), (0.02, 1.3), (0.5, 2.0), (0.9, 1.1))


def swings(error: np.ndarray) -> np.ndarray:
    """Returns the heights of the runs of equal sign, in order."""
    edges = np.flatnonzero(np.diff(np.sign(error))) + 1
    return np.array([run[np.argmax(np.abs(run))] for run in np.split(error, edges)])


def dense(lower: float, upper: float) -> np.ndarray:
    return np.unique(
        np.concatenate([np.geomspace(lower, upper, 20001), np.linspace(lower, upper, 20001)])
    )


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("interval", INTERVALS)
def test_error_swings_between_equal_heights(degree, interval):
    # Chebyshev: k coefficients are optimal if and only if the error has k + 1 equal alternations.
    lower, upper = interval
    link, error = odd_minimax(lower, upper, degree)
    heights = swings(1 - evaluate([link], dense(lower, upper)))
    assert len(link) == (degree + 1) // 2
    assert len(heights) == len(link) + 1
    np.testing.assert_allclose(np.abs(heights), error, rtol=1e-5, atol=1e-12)
    assert heights[0] > 0  # p starts below 1


@given(
    degree=st.sampled_from((1, *DEGREES)),
    log_ratio=st.floats(-16, -1e-9),
    upper=st.floats(0.1, 10),
)
@settings(deadline=None, max_examples=60)
def test_reported_error_is_the_largest_on_the_interval(degree, log_ratio, upper):
    lower = upper * math.exp(log_ratio)
    link, error = odd_minimax(lower, upper, degree)
    worst = np.max(np.abs(1 - evaluate([link], dense(lower, upper))))
    assert worst == pytest.approx(error, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("lower", "upper"), INTERVALS)
def test_closed_forms(lower, upper):
    (slope,), error = odd_minimax(lower, upper, 1)
    assert slope == pytest.approx(2 / (lower + upper))
    assert error == pytest.approx((upper - lower) / (upper + lower))
    # The best cubic takes one value at both ends, so it is c·x·(s − x²) with s = l² + l·u + u²,
    # and c puts 1 midway between that value and the peak.
    s = lower**2 + lower * upper + upper**2
    ends, peak = lower * upper * (lower + upper), 2 * (s / 3) ** 1.5
    cubic, error = odd_minimax(lower, upper, 3)
    np.testing.assert_allclose(cubic, np.array([s, -1.0]) * 2 / (ends + peak), rtol=1e-10)
    assert error == pytest.approx((peak - ends) / (peak + ends))


@pytest.mark.parametrize(
    ("degree", "newton_schulz"),
    [(3, [1.5, -0.5]), (5, [1.875, -1.25, 0.375]), (9, [315, -420, 378, -180, 35])],
)
def test_narrow_intervals_tend_to_newton_schulz(degree, newton_schulz):
    expected = np.array(newton_schulz) / (128 if degree == 9 else 1)
    link, error = odd_minimax(1.0, 1.0, degree)
    np.testing.assert_allclose(link, expected, rtol=1e-14)
    assert error < 1e-15
    for width in (1e-8, 1e-5, 1e-3):
        near, _ = odd_minimax(1 - width, 1 + width, degree)
        np.testing.assert_allclose(near, expected, rtol=2 * degree * width)


@pytest.mark.parametrize("degrees", [(5,) * 5, (9, 9, 9), (3, 7, 5), (9, 9, 9, 5)])
@pytest.mark.parametrize("cushion", [0.0, 0.05])
def test_chain_lands_in_a_band_about_one(degrees, cushion):
    lower = 2e-3
    chain = compose(degrees, lower, cushion=cushion)
    assert [2 * len(link) - 1 for link in chain] == list(degrees)
    half_width = 1 - float(evaluate(chain, lower))
    assert 0 < half_width < 1
    assert np.all(np.abs(1 - evaluate(chain, dense(lower, 1.0))) <= half_width + 1e-9)


@given(seed=st.integers(0, 2**32 - 1), degrees=st.sampled_from([(9, 9, 9), (5,) * 5, (3, 9, 7)]))
@settings(deadline=None, max_examples=15)
def test_inflation_absorbs_rounding_of_its_own_size(seed, degrees):
    random, inflation, low = np.random.default_rng(seed), 1.01, 2e-3
    y = np.geomspace(low, 1, 2001)
    for link in compose(degrees, low, inflation=inflation):
        y = evaluate([link], y * inflation ** random.uniform(-1, 1, y.shape))
        low = float(evaluate([link], low / inflation))
        assert np.all(np.abs(1 - y) <= 1 - low + 1e-9)


def test_inflation_is_what_keeps_degree_nine_from_exploding():
    assert abs(evaluate(compose((9,) * 4, 2e-3), 1.01)) > 1e9
    assert abs(1 - evaluate(compose((9,) * 4, 2e-3, inflation=1.01), 1.01)) < 1e-3


@pytest.mark.parametrize("degree", DEGREES)
def test_cushioned_link_is_centred_on_one(degree):
    values = evaluate(compose((degree,), 0.01, cushion=0.1), dense(0.01, 1.0))
    assert values.min() + values.max() == pytest.approx(2.0, abs=1e-6)


def test_cushioned_link_is_the_best_above_its_cushion():
    (link,) = compose((5,), 1e-3, inflation=1.5, cushion=0.1)
    best, _ = odd_minimax(0.1 * 1.5, 1.5, 5)
    np.testing.assert_allclose(np.divide(link, link[0]), np.divide(best, best[0]), rtol=1e-12)


def test_cushion_bounds_the_slope():
    slopes = [compose((5,) * 5, 1e-4, cushion=cushion)[0][0] for cushion in (0.0, 0.024, 0.1)]
    assert slopes[0] > slopes[1] > slopes[2]


def test_safety_shrinks_the_argument_of_all_links_but_the_last():
    plain, safe = compose((5, 5), 0.1), compose((5, 5), 0.1, safety=1.02)
    assert safe[0] == stretch(plain[0], 1.02)
    low = float(evaluate(safe[:1], 0.1))
    assert safe[1] == odd_minimax(low, 2 - low, 5)[0]


@pytest.mark.parametrize("degrees", [(9, 9, 9), (9, 9, 9, 5), (5,) * 5])
def test_design_beats_every_other_end(degrees):
    best = rms_error(design(degrees, conditioning=500.0, inflation=1.002), 500.0)
    for lower in np.geomspace(3e-4, 0.1, 30):
        other = rms_error(compose(degrees, float(lower), inflation=1.002), 500.0)
        assert best <= other * (1 + 1e-4)


def test_design_reproduces_its_published_example():
    found = design((5,) * 5, conditioning=1e3, inflation=1.002)
    expected = (
        (8.4332, -24.8787, 18.3812),
        (4.1417, -3.0676, 0.5723),
        (3.8377, -2.8550, 0.5483),
        (3.0201, -2.2551, 0.4810),
        (2.0988, -1.4789, 0.3972),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(found, compose((5,) * 5, 1.47e-3, inflation=1.002), rtol=1e-3)
    assert rms_error(found, 1e3) == pytest.approx(0.052, abs=5e-4)


def test_design_that_is_exact_in_float32_takes_the_widest_interval():
    # Every end down to 1e-3 suffices for a spread of 500; a lower end serves smaller values.
    assert max_error(design((5,) * 8, conditioning=500.0), 1e-3) < 1e-7


def test_design_is_derived_once():
    assert design((5, 5), conditioning=10.0) is design((5, 5), conditioning=10.0)


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.floats(0.5, 2.0), st.floats(-1.5, 1.5)
)
@settings(deadline=None, max_examples=30)
def test_stretch_divides_the_argument(link, factor, x):
    expected = evaluate([link], x / factor)
    np.testing.assert_allclose(evaluate([stretch(link, factor)], x), expected, atol=1e-9)


def test_chain_applies_its_first_link_first():
    assert evaluate([(2.0, 1.0), (0.0, 3.0)], 1.0) == 81.0


def test_chain_is_evaluated_in_float64_whatever_comes():
    x = np.float32(0.3)
    assert evaluate([(1.5, -0.5)], x) == evaluate([(1.5, -0.5)], float(x))


def test_max_error_sees_the_band_and_the_lower_end():
    chain = compose((9, 9, 9), 2e-3)
    assert max_error(chain, 2e-3) == pytest.approx(1 - float(evaluate(chain, 2e-3)), rel=1e-3)
    assert max_error(chain, 1e-4) == pytest.approx(1 - float(evaluate(chain, 1e-4)))
    peak = 2 / 3 * 2.6 * math.sqrt(2.6 / 4.5)
    assert max_error(((2.6, -1.5),), 0.4) == pytest.approx(peak - 1, rel=1e-6)


def test_import_derives_nothing(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("solved at import")

    monkeypatch.setattr(np.linalg, "solve", refuse)
    runpy.run_path(str(_minimax.__file__))
