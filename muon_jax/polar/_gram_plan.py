"""The static plan of the Gram form: which steps run on X and which on its small Gram matrix.

A step X ← q(R)X with R = XXᵀ takes two wide products, R and q(R)X. Several steps can share them:
with R on hand, Q gathers the product of their q(R) and R moves on by itself,

    Q ← Q·q(R),   R ← q(R)·R·q(R),   and at the end X ← QX,

which saves two wide products a step and costs three square ones: it pays above an aspect ratio of
1.5. The catch is rounding. R is known to an absolute error only, and steps that multiply small
singular values by a multiply that error by a². So the schedule is cut into segments, runs of steps
that share one R, each no longer than rounding allows.
"""

import dataclasses
import itertools
import math
from types import MappingProxyType

from muon_jax.polar._minimax import Schedule

# Unit roundoff of a product's operands, by arithmetic; sums are in float32 throughout.
ROUNDOFF = MappingProxyType(
    {"float32": 2.0**-24, "tensorfloat32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
)

# Largest (product of slopes)²·roundoff of a segment. Measured in float32 with 0.006 in one segment:
# rounding moves the result by 0.001 of its norm on a spectrum down to 1e-2, by 0.004 down to 1e-4
# and by 0.01 down to 1e-7. In TF32, where it is 0.2 and more, by 0.06 to 13.
TOLERANCE = 0.01

# Products that c1·R + c2·R² + … takes once R is known: none, R², and for degrees 7 and 9 one more,
# R²·(c2·I + c3·R + c4·R²).
_POWERS = MappingProxyType({2: 0, 3: 1, 4: 2, 5: 2})


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a schedule runs on matrices of one aspect ratio.

    Attributes:
      segments: (start, stop) into the schedule, in order and without gaps. One step is an ordinary
        step on X, more steps share one Gram matrix.
      wide: Products that have the long side: (short, long)·(long, short) or its reverse.
      square: Products of two (short, short) matrices.
    """

    segments: tuple[tuple[int, int], ...]
    wide: int
    square: int

    def flops(self, rows: int, cols: int) -> int:
        """Counts the FLOPs of all products; the element-wise rest is 1/short of them."""
        short, long = sorted((rows, cols))
        return 2 * short * short * (self.wide * long + self.square * short)

    def __str__(self) -> str:
        runs = []
        for shares, group in itertools.groupby(self.segments, lambda s: s[1] - s[0] > 1):
            segments = list(group)
            if not shares:
                segments = [(segments[0][0], segments[-1][1])]
            where = "one Gram matrix" if shares else "X"
            runs += [f"{_numbered(start, stop)} on {where}" for start, stop in segments]
        return f"{', '.join(runs)}; {self.wide} wide and {self.square} square products"


def plan(
    schedule: Schedule,
    aspect: float,
    *,
    roundoff: float,
    tolerance: float = TOLERANCE,
    squared_by_norm: bool = True,
) -> Plan:
    """Finds the cheapest segments that rounding allows, by dynamic programming.

    Among equally cheap plans, segments of similar length win, then those that magnify less: both
    leave less rounding in the result.

    Args:
      schedule: Coefficients of every step, 2 to 5 each.
      aspect: Long side over short side, at least 1.
      roundoff: Unit roundoff of the arithmetic; `ROUNDOFF` has the usual ones.
      tolerance: Bound on (product of slopes)²·roundoff in every segment of two or more steps.
      squared_by_norm: Whether the normalisation needs R², which a first step of degree 3 does not.
    """
    powers = [_POWERS[len(link)] for link in schedule]
    powers[0] = max(powers[0], int(squared_by_norm))
    # best[stop] covers the first `stop` steps: rank to minimise, segments, wide, square.
    best = [((0.0, 0, 0.0), (), 0, 0)]
    for stop in range(1, len(schedule) + 1):
        candidates = []
        for start in range(stop):
            length = stop - start
            slope = math.prod(link[0] for link in schedule[start:stop])
            magnified = slope**2 * roundoff if length > 1 else 0.0
            if magnified > tolerance:
                continue
            (_, spread, rounding), segments, wide, square = best[start]
            wide += 2
            square += sum(powers[start:stop]) + 3 * (length - 1)
            rank = (wide * aspect + square, spread + length**2, rounding + magnified)
            candidates.append((rank, (*segments, (start, stop)), wide, square))
        best.append(min(candidates))
    _, segments, wide, square = best[-1]
    return Plan(segments, wide, square)


def _numbered(start: int, stop: int) -> str:
    return f"step {stop}" if stop - start == 1 else f"steps {start + 1}-{stop}"
