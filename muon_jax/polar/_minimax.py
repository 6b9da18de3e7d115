"""Designs schedules of odd polynomials, in NumPy float64.

A schedule is a composition of odd polynomials, p = p_n ∘ … ∘ p_1, that maps every singular value in
[lower, 1] close to one. Each is the minimax polynomial on the image of the ones before it: for
given degrees this greedy composition is optimal (Amsel et al.). The only free parameter is `lower`,
which `design` chooses for a condition number.

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
"""The polynomials, in the order in which they are applied."""

# The minimax error is about (1 − lower/upper)^count. Below this value rounding exceeds it, and the
# signs that the exchange needs are noise.
_HIDDEN_ERROR = 1e-12

# Errors below this count as equal, so `design` then prefers the widest interval.
_FLOAT32_ROUNDOFF = 2.0**-24
_GOLDEN_STEPS = 20


def odd_minimax(lower: float, upper: float, degree: int) -> tuple[Coefficients, float]:
    """Returns the odd polynomial of one degree that is closest to 1 on [lower, upper].

    Write p(x) = x·q(x²) with k coefficients in q. The error 1 − p of the minimax polynomial
    equioscillates at k + 1 points, which the Remez exchange finds from any start. No grid is
    needed: p crosses 1 between any two adjacent points, so all k − 1 roots of p′ in x² are real and
    inside the interval; with the two ends they are the next points.

    Args:
      lower: Lower end, above 0.
      upper: Upper end, at least `lower`.
      degree: Odd degree of p, 1 or more.

    Returns:
      The coefficients of p, and the largest |1 − p(x)| on the interval. If rounding would exceed
      that error, p is the limit for narrow intervals: flat at the midpoint.
    """
    count = (degree + 1) // 2
    ratio = lower / upper
    if (1 - ratio) ** count < _HIDDEN_ERROR:
        step = stretch(_flat_at_one(count), (lower + upper) / 2)
        return step, float(np.max(np.abs(1 - evaluate([step], [lower, upper]))))
    # q is a Chebyshev series in t in [-1, 1], with (x / upper)² = ratio² + half·(1 + t). It is well
    # conditioned on every interval, which powers of x are not.
    half = (1 - ratio**2) / 2
    signs = (-1.0) ** np.arange(count + 1)

    def equioscillating(points: NDArray[np.float64]) -> tuple[list[float], float]:
        """Returns q, and the size of its error, which alternates in sign over the points."""
        x = np.sqrt(ratio**2 + half * (1 + points))
        basis = x[:, None] * chebyshev.chebvander(points, count - 1)
        *q, height = np.linalg.solve(np.column_stack([basis, signs]), np.ones(count + 1))
        return q, abs(float(height))

    q, height = equioscillating(chebyshev.chebpts2(count + 1))
    before = 0.0
    while height > before:  # It grows with every exchange, up to the minimax error.
        before = height
        # p′(x) = q + 2x²·dq/d(x²), as a series in t.
        twice_x2 = [2 * (ratio**2 / half + 1), 2.0]
        slope = chebyshev.chebadd(q, chebyshev.chebmul(twice_x2, chebyshev.chebder(q)))
        inner = np.sort(chebyshev.chebroots(slope).real)
        q, height = equioscillating(np.array([-1.0, *inner, 1.0]))
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
    """Composes minimax polynomials, each for the image of [lower, 1] under the ones before it.

    Args:
      degrees: Odd degree of every step.
      lower: Smallest singular value that is mapped near 1, in (0, 1). Smaller ones are multiplied
        by the product of the slopes at 0.
      inflation: Factor, at least 1, by which both ends of every interval are moved outwards, to
        cover rounding.
      cushion: Each step is optimal only above this fraction of the upper end of its interval, and
        is then recentred on 1. It bounds the slope, and so the amplification of rounding.
      safety: Factor s, at least 1, that turns every step but the last into p(x / s), as in the
        tables of Polar Express; `inflation` has the same purpose without shrinking values.

    Returns:
      One tuple of coefficients for each degree.
    """
    steps = []
    low, high = lower / inflation, inflation
    for index, degree in enumerate(degrees):
        seen = max(low, cushion * high)
        step, error = odd_minimax(seen, high, degree)
        if seen > low:
            centre = (float(evaluate([step], low)) + 1 + error) / 2
            step = tuple(c / centre for c in step)
        if index < len(degrees) - 1:
            step = stretch(step, safety)
        steps.append(step)
        # The error equioscillates about 1, so the lowest value gives the highest.
        lowest = float(evaluate([step], low))
        low, high = lowest / inflation, (2 - lowest) * inflation
    return tuple(steps)


@functools.cache
def design(degrees: tuple[int, ...], *, conditioning: float, inflation: float = 1.0) -> Schedule:
    """Composes the schedule with the least mean error over a range of singular values.

    A larger lower end makes the band around 1 narrower above it and the images lower below it.
    A golden-section search minimises `rms_error` over [1 / conditioning, 1], which is unimodal, in
    about 0.1 s, once.

    Args:
      degrees: Odd degree of every step.
      conditioning: Ratio of the largest singular value to the smallest in that range.
      inflation: As in `compose`.
    """

    def composed(log_lower: float) -> Schedule:
        return compose(degrees, math.exp(log_lower), inflation=inflation)

    def loss(log_lower: float) -> float:
        return max(rms_error(composed(log_lower), conditioning), _FLOAT32_ROUNDOFF)

    return composed(_golden_minimum(loss, math.log(0.5 / conditioning), math.log(0.9)))


def evaluate(schedule: Iterable[Sequence[float]], x: ArrayLike) -> NDArray[np.float64]:
    """Applies a schedule to numbers, as its matrix form does to singular values."""
    y = np.asarray(x, np.float64)
    for step in schedule:
        y = y * polynomial.polyval(y * y, step)
    return y


def rms_error(schedule: Schedule, conditioning: float) -> float:
    """Returns the root mean square of 1 − p(x) for x log-uniform over [1 / conditioning, 1]."""
    x = np.geomspace(1 / conditioning, 1, 1001)
    return float(np.sqrt(np.mean(np.square(1 - evaluate(schedule, x)))))


def max_error(schedule: Schedule, lower: float) -> float:
    """Returns the largest |1 − p(x)| on a fine grid over [lower, 1]."""
    x = np.geomspace(lower, 1, 10001)
    return float(np.max(np.abs(1 - evaluate(schedule, x))))


def stretch(step: Iterable[float], factor: float) -> Coefficients:
    """Returns the coefficients of p(x / factor)."""
    return tuple(float(c) / factor ** (2 * k + 1) for k, c in enumerate(step))


def _flat_at_one(count: int) -> Coefficients:
    """Returns the odd polynomial with p(1) = 1 and count − 1 vanishing derivatives at 1.

    These are Newton-Schulz and its higher orders: x·Σ_j binom(2j, j) / 4^j · (1 − x²)^j.
    """
    terms = (math.comb(2 * j, j) / 4**j * Polynomial([1.0, -1.0]) ** j for j in range(count))
    return tuple(sum(terms, Polynomial([0.0])).coef)


def _golden_minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Returns the minimiser of a unimodal function; of a constant one, the left end."""
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
