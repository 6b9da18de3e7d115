"""Named schedules: published rows re-derived from their rules; names and tables."""

import math
import runpy

import numpy as np
import pytest

from muon_jax._checks import named
from muon_jax.polar import _minimax
from muon_jax.polar import _schedules as _coefficients
from muon_jax.polar._gram_plan import ROUNDOFF
from muon_jax.polar._minimax import compose, evaluate, max_error, odd_minimax
from muon_jax.polar._schedules import NAMES, PUBLISHED, schedule

KELLER = (3.4445, -4.7750, 2.0315)

# The rule and the printed digits of each source.
DERIVED = {
    "polar_express": (compose((5,) * 8, 1e-3, cushion=0.02407327424182761), 1e-9),
    "dion": (compose((5,) * 5, 1e-3, cushion=0.02, safety=1.02), 1e-11),
    "cans": (compose((5,) * 5, 1e-3), 5e-5),
}


@pytest.mark.parametrize("name", DERIVED)
def test_published_rows_follow_from_their_rule(name):
    derived, digits = DERIVED[name]
    np.testing.assert_allclose(PUBLISHED[name].rows, derived, rtol=0, atol=digits)


def test_safe_polar_express_is_what_nvidia_prints():
    # Emerging-Optimizers cuts the rows of the authors' code to four digits.
    printed = [
        (8.2051, -22.9019, 16.4607),
        (4.0664, -2.8612, 0.5184),
        (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853),
        (2.2779, -1.6198, 0.3985),
        (1.8726, -1.2307, 0.3585),
        (1.8564, -1.2132, 0.3568),
        (1.8750, -1.2500, 0.3750),
    ]
    np.testing.assert_allclose(PUBLISHED["polar_express_safe"].rows, printed, rtol=0, atol=1e-4)


def test_gram_newton_schulz_shrinks_the_argument_of_every_row():
    x = np.linspace(0, 1, 11)
    for row, plain in zip(
        PUBLISHED["gram_newton_schulz"].rows, PUBLISHED["polar_express"].rows, strict=False
    ):
        np.testing.assert_allclose(evaluate([row], x), evaluate([plain], x / 1.05))


def test_relaxed_cubics_are_best_cubics_that_peak_at_1_3():
    low, high, derived = 7e-3, 1.0, []
    for _ in range(5):
        link, error = odd_minimax(low, high, 3)
        derived.append(tuple(1.3 / (1 + error) * c for c in link))
        low, high = float(evaluate(derived[-1:], low)), 1.3
    np.testing.assert_allclose(PUBLISHED["cubic"].rows, derived, rtol=0, atol=5e-8)


def test_the_names_that_editors_complete_are_those_of_the_table():
    assert ("fast", "accurate", "minimax", *PUBLISHED) == NAMES


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_keep_singular_values_bounded_and_raise_small_ones(name):
    known = PUBLISHED[name]
    rows = schedule(name)
    assert len(rows) == known.steps
    assert known.source.startswith("https://")
    values = evaluate(rows, np.geomspace(1e-6, 1, 4001))
    assert values.min() > 0
    assert values.max() < 1.35
    assert evaluate(rows, np.geomspace(0.1, 1, 401)).min() > 0.55


@pytest.mark.parametrize("arithmetic", ROUNDOFF)
@pytest.mark.parametrize("name", ["fast", "accurate", "minimax"])
def test_own_designs_gather_singular_values_about_one(name, arithmetic):
    band = {"fast": 0.12, "accurate": 0.005, "minimax": 0.02}[name]
    assert max_error(schedule(name, arithmetic=arithmetic), 1 / 300) < band


def pushed_out(rows, factor: float) -> np.ndarray:
    """Applies a schedule; before every step, singular values grow by a factor."""
    values = np.geomspace(1 / 300, 1, 1001)
    for row in rows:
        values = evaluate([row], values * factor)
    return values


@pytest.mark.parametrize("arithmetic", ROUNDOFF)
@pytest.mark.parametrize(("name", "band"), [("fast", 0.12), ("accurate", 0.005), ("minimax", 0.02)])
def test_own_designs_expect_what_rounding_pushes_out(name, band, arithmetic):
    factor = 1 + max(1e-3, 2 * ROUNDOFF[arithmetic])
    values = pushed_out(schedule(name, arithmetic=arithmetic), factor)
    np.testing.assert_allclose(values, 1, rtol=0, atol=band)


@pytest.mark.parametrize("arithmetic", [name for name in ROUNDOFF if name != "float32"])
@pytest.mark.parametrize("name", [name for name, known in PUBLISHED.items() if known.bare])
def test_bare_rows_are_stretched_where_rounding_would_blow_them_up(name, arithmetic):
    factor = 1 + 2 * ROUNDOFF[arithmetic]
    as_published, stretched = schedule(name), schedule(name, arithmetic=arithmetic)
    assert pushed_out(as_published, factor).max() > 1e3
    np.testing.assert_allclose(pushed_out(stretched, factor), 1, rtol=0, atol=0.2)
    assert len(stretched) == len(as_published)
    assert stretched[-1] == as_published[-1]


@pytest.mark.parametrize("arithmetic", ["tensorfloat32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["fast", "accurate", "minimax"])
def test_designs_for_rounded_operands_keep_to_quintics_but_for_the_last_step(name, arithmetic):
    """Rounding leaves the interval, and above a wide one degree 9 grows without bound."""
    *quintics, last = schedule(name, arithmetic=arithmetic)
    assert {len(row) for row in quintics} == {3}
    assert len(last) == 3 or max(map(abs, last)) < 10


def log_uniform(conditioning: float) -> np.ndarray:
    return np.geomspace(1, 1 / conditioning, 512)


def gaussian_square() -> np.ndarray:
    """Returns the singular values of a large square Gaussian matrix, by the quarter-circle law."""
    x = np.linspace(0, 2, 20001)
    share = np.arcsin(x / 2) * 2 / np.pi + x * np.sqrt(4 - x**2) / (2 * np.pi)
    return np.interp((np.arange(512) + 0.5) / 512, share, x)


def gaussian_wide(rows: int, cols: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.linalg.svd(random.normal(size=(rows, cols)), compute_uv=False)


def error_ratio(name: str, sigma: np.ndarray) -> float:
    """Returns our polar error divided by that of Keller's five steps, each with its own norm."""

    def error(rows, order):
        return np.linalg.norm(1 - evaluate(rows, sigma / np.linalg.norm(sigma, order)))

    return float(error(schedule(name), 8) / error(schedule("keller"), 2))


@pytest.mark.parametrize(
    ("spectrum", "fast", "accurate"),
    [
        (gaussian_square(), 0.45, 0.16),
        (log_uniform(1e2), 0.35, 0.03),
        (log_uniform(1e3), 0.58, 0.24),
        (gaussian_wide(128, 512), 0.5, 0.05),
        (gaussian_wide(64, 1024), 0.5, 0.05),
    ],
    ids=["square", "log 1e2", "log 1e3", "4:1", "16:1"],
)
def test_own_designs_beat_the_usual_five_steps(spectrum, fast, accurate):
    assert error_ratio("fast", spectrum) < fast
    assert error_ratio("accurate", spectrum) < accurate


def test_steps_take_the_first_rows_and_repeat_only_where_the_source_does():
    assert schedule("keller", 3) == (KELLER,) * 3
    assert schedule("keller") == (KELLER,) * 5
    assert schedule("cans", 2) == PUBLISHED["cans"].rows[:2]
    assert schedule("polar_express", 10)[7:] == ((1.875, -1.25, 0.375),) * 3
    assert len(schedule("minimax", 3)) == 3
    assert schedule("fast", 3) == schedule("fast")


@pytest.mark.parametrize("table", [[[2, -1.5, 0.5]] * 2, np.array([[2, -1.5, 0.5]] * 2)])
def test_explicit_tables_are_taken_as_they_are(table):
    assert schedule(table) == ((2.0, -1.5, 0.5),) * 2
    assert schedule(table, 1) == ((2.0, -1.5, 0.5),)
    assert all(type(c) is float for row in schedule(table) for c in row)


@pytest.mark.parametrize("row", [KELLER, list(KELLER), np.array(KELLER), [KELLER]])
def test_one_explicit_row_repeats(row):
    assert schedule(row) == (KELLER,) * 5
    assert schedule(row, 2) == (KELLER,) * 2


def test_degrees_3_to_9_are_allowed_side_by_side():
    table = ((1.5, -0.5), KELLER, (2.0, -1.5, 0.5, 0.25), (2.0, -1.5, 0.5, 0.25, -0.125))
    assert schedule(table) == table


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            ("jordan",),
            ValueError,
            "muon_jax.newton_schulz(coefficients='jordan'): choose one of "
            f"{', '.join(map(repr, NAMES))}.",
        ),
        (
            ("cans", 7),
            ValueError,
            "muon_jax.newton_schulz(steps=7): 'cans' has 5 rows and no rule beyond them; "
            "take at most 5.",
        ),
        (
            ([KELLER, KELLER], 3),
            ValueError,
            "muon_jax.newton_schulz(steps=3): the table has 2 rows and no rule beyond them; "
            "take at most 2.",
        ),
        (
            ("fast", 5),
            ValueError,
            "muon_jax.newton_schulz(steps=5): 'fast' has 3 steps; leave steps out, "
            "or choose 'minimax'.",
        ),
        (
            ("keller", 0),
            ValueError,
            "muon_jax.newton_schulz(steps=0): give a whole number of at least 1.",
        ),
    ],
)
def test_refusals_name_the_value_and_the_remedy(arguments, kind, message):
    with named("newton_schulz"), pytest.raises(kind) as caught:
        schedule(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ((), ValueError),
        ([(1.0,)], ValueError),
        ([(1.0,) * 6], ValueError),
        ([KELLER, ()], ValueError),
        ((1.5, math.nan), ValueError),
        ([(math.inf, 1.0)], ValueError),
        (3.0, TypeError),
        (None, TypeError),
        ([KELLER, "abc"], TypeError),
        ([1.5, (1.0, 2.0)], TypeError),
    ],
)
def test_unusable_tables_are_refused(table, kind):
    with named("newton_schulz"), pytest.raises(kind) as caught:
        schedule(table)
    assert str(caught.value).startswith(f"muon_jax.newton_schulz(coefficients={table!r}): ")


def test_import_derives_nothing(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("derived at import")

    monkeypatch.setattr(_minimax, "odd_minimax", refuse)
    runpy.run_path(str(_coefficients.__file__))
