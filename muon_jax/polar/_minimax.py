"""Odd-polynomial schedules, derived in NumPy float64 and only when asked.

A schedule is a chain of odd polynomials, p = p_n ∘ … ∘ p_1, that carries every singular value in
[lower, 1] close to one. Each link is the best polynomial for the interval that the links before
it leave behind: for given degrees this greedy chain is the best chain (Amsel et al.). That leaves
one choice, `lower`, which `design` makes for a spread of singular values.

References:
  Amsel, Persson, Musco, Gower, "The Polar Express", 2025, https://arxiv.org/abs/2505.16932
  Grishina, Smirnov, Rakhuba, "Accelerating Newton-Schulz Iteration for Orthogonalization via
  Chebyshev-type Polynomials", 2025, https://arxiv.org/abs/2506.10935
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev, polynomial
from numpy.typing import ArrayLike, NDArray

Coefficients: TypeAlias = tuple[float, ...]
"""(c0, c1, c2, …) of the odd polynomial c0·x + c1·x³ + c2·x⁵ + …"""

Schedule: TypeAlias = tuple[Coefficients, ...]
"""The links of a chain, in the order in which they are applied."""

# The best polynomial's error is about (1 − lower/upper)^count. Below this it drowns in rounding,
# and the exchange has no sign to follow.
_HIDDEN_ERROR = 1e-12

# A chain this good is exact in float32; of several such chains `design` takes the widest.
_FLOAT32_ROUNDOFF = 2.0**-24
_GOLDEN_STEPS = 20


def odd_minimax(lower: float, upper: float, degree: int) -> tuple[Coefficients, float]:
    """Finds the odd polynomial of one degree that stays closest to 1 on [lower, upper].

    Write p(x) = x·q(x²) with k coefficients in q. The error 1 − p of the best polynomial swings
    between k + 1 points of equal height, and Remez' exchange walks there from any such points.
    Here it needs no grid: p crosses 1 between any two neighbours, so all k − 1 roots of p′ in x²
    are real and inside, and together with the two ends they are the next points.

    Args:
      lower: Lower end, above 0.
      upper: Upper end, at least `lower`.
      degree: Odd degree of p, 1 or more.

    Returns:
      The coefficients of p, and the largest |1 − p(x)| on the interval. On an interval so narrow
      that rounding hides the swing, p is flat at the middle, which is the limit.
    """
    count = (degree + 1) // 2
    ratio = lower / upper
    if (1 - ratio) ** count < _HIDDEN_ERROR:
        link = stretch(_flat_at_one(count), (lower + upper) / 2)
        return link, float(np.max(np.abs(1 - evaluate([link], [lower, upper]))))
    # q is a Chebyshev series in t in [-1, 1], with (x / upper)² = ratio² + half·(1 + t). It is well
    # conditioned on every interval, which powers of x are not.
    half = (1 - ratio**2) / 2
    signs = (-1.0) ** np.arange(count + 1)

    def levelled(points: NDArray[np.float64]) -> tuple[list[float], float]:
        """Returns q, and the height of its error, which alternates in sign over the points."""
        x = np.sqrt(ratio**2 + half * (1 + points))
        basis = x[:, None] * chebyshev.chebvander(points, count - 1)
        *q, height = np.linalg.solve(np.column_stack([basis, signs]), np.ones(count + 1))
        return q, abs(float(height))

    q, height = levelled(chebyshev.chebpts2(count + 1))
    before = 0.0
    while height > before:  # It grows with every exchange until it is the error of the best p.
        before = height
        # p′(x) = q + 2x²·dq/d(x²), as a series in t.
        twice_x2 = [2 * (ratio**2 / half + 1), 2.0]
        slope = chebyshev.chebadd(q, chebyshev.chebmul(twice_x2, chebyshev.chebder(q)))
        inner = np.sort(chebyshev.chebroots(slope).real)
        q, height = levelled(np.array([-1.0, *inner, 1.0]))
    powers = Chebyshev(q, domain=[ratio**2, 1.0]).convert(kind=Polynomial).coef
    return stretch(powers, upper), height


def compose(
    degrees: Sequence[int],
    lower: float,
    *,
    inflation: float = 1.0,
    cushion: float = 0.0,
    safety: float = 1.0,
) -> Schedule:
    """Chains best polynomials, each for what the links before it leave of [lower, 1].

    Args:
      degrees: Odd degree of every link.
      lower: Smallest singular value that must arrive near 1, in (0, 1). Those below it grow too,
        by the product of the slopes at 0, and arrive lower.
      inflation: Factor, at least 1, by which both ends of every interval are moved outwards, so
        that values which rounding has pushed out still meet a polynomial made for them.
      cushion: Fraction of an interval's upper end below which its link does not look. It bounds
        the slope, and so what one step makes of rounding; the link is recentred on 1.
      safety: Factor s, at least 1, that turns every link but the last into p(x / s). The tables of
        Polar Express carry it; `inflation` serves the same end without shrinking anything.

    Returns:
      One tuple of coefficients for each degree.
    """
    links = []
    low, high = lower / inflation, inflation
    for index, degree in enumerate(degrees):
        seen = max(low, cushion * high)
        link, error = odd_minimax(seen, high, degree)
        if seen > low:
            centre = (float(evaluate([link], low)) + 1 + error) / 2
            link = tuple(c / centre for c in link)
        if index < len(degrees) - 1:
            link = stretch(link, safety)
        links.append(link)
        # The link swings evenly about 1, so its lowest value bounds the highest.
        lowest = float(evaluate([link], low))
        low, high = lowest / inflation, (2 - lowest) * inflation
    return tuple(links)


@functools.cache
def design(degrees: tuple[int, ...], *, conditioning: float, inflation: float = 1.0) -> Schedule:
    """Composes the chain that is best on average over a spread of singular values.

    A larger lower end makes the band around 1 narrower above it and the images lower below it.
    The best one minimises `rms_error` over [1 / conditioning, 1]; that error has one valley, which
    a golden-section search follows. About 0.1 s, once.

    Args:
      degrees: Odd degree of every link.
      conditioning: Ratio of the largest singular value to the smallest that counts.
      inflation: As in `compose`.
    """

    def chain(log_lower: float) -> Schedule:
        return compose(degrees, math.exp(log_lower), inflation=inflation)

    def loss(log_lower: float) -> float:
        return max(rms_error(chain(log_lower), conditioning), _FLOAT32_ROUNDOFF)

    return chain(_golden_minimum(loss, math.log(0.5 / conditioning), math.log(0.9)))


def evaluate(schedule: Iterable[Sequence[float]], x: ArrayLike) -> NDArray[np.float64]:
    """Applies the chain to numbers, as its matrix form applies it to singular values."""
    y = np.asarray(x, np.float64)
    for link in schedule:
        y = y * polynomial.polyval(y * y, link)
    return y


def rms_error(schedule: Schedule, conditioning: float) -> float:
    """Returns the root mean square of 1 − p(x), x log-uniform over [1 / conditioning, 1]."""
    x = np.geomspace(1 / conditioning, 1, 1001)
    return float(np.sqrt(np.mean(np.square(1 - evaluate(schedule, x)))))


def max_error(schedule: Schedule, lower: float) -> float:
    """Returns the largest |1 − p(x)| on [lower, 1], as a fine grid sees it."""
    x = np.geomspace(lower, 1, 10001)
    return float(np.max(np.abs(1 - evaluate(schedule, x))))


def stretch(link: Iterable[float], factor: float) -> Coefficients:
    """Returns the coefficients of p(x / factor)."""
    return tuple(float(c) / factor ** (2 * k + 1) for k, c in enumerate(link))


def _flat_at_one(count: int) -> Coefficients:
    """Returns the odd polynomial with p(1) = 1 and as many vanishing derivatives there as fit.

    It is Newton-Schulz and its higher orders: x·Σ_j binom(2j, j) / 4^j · (1 − x²)^j.
    """
    terms = (math.comb(2 * j, j) / 4**j * Polynomial([1.0, -1.0]) ** j for j in range(count))
    return tuple(sum(terms, Polynomial([0.0])).coef)


def _golden_minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Finds the bottom of a function with one valley; of a flat one, the left end."""
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_GOLDEN_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
    return (low + high) / 2
