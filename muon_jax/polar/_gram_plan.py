"""Plans the Gram form: which steps run on X, and which on its smaller Gram matrix.

A step X ← q(R)X with R = XXᵀ takes two wide products, R and q(R)X. Several steps can share one R:

    Q ← Q·q(R),   R ← q(R)·R·q(R),   and at the end X ← QX,

which saves two wide products a step and costs three square ones, so it is cheaper above an aspect
ratio of 1.5. Rounding limits it: R has an absolute error, and steps that multiply small singular
values by a multiply that error by a². So the schedule is split into segments of steps that share
one R, each short enough for the arithmetic.
"""

import dataclasses
import itertools
import math
from types import MappingProxyType

from muon_jax.polar._minimax import Schedule

# Unit roundoff of the operands of products, by arithmetic; sums are always in float32.
ROUNDOFF = MappingProxyType(
    {"float32": 2.0**-24, "tensorfloat32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
)

# Largest (product of slopes)²·roundoff of a segment. Measured in float32 with a segment of 0.006:
# rounding changes the result by 0.001 of its norm for singular values down to 1e-2, by 0.004 down
# to 1e-4 and by 0.01 down to 1e-7; in TF32, where segments have 0.2 and more, by 0.06 to 13.
TOLERANCE = 0.01

# Products for c1·R + c2·R² + … given R, by number of coefficients: none, R², and for degrees 7 and
# 9 also R²·(c2·I + c3·R + c4·R²).
_POWERS = MappingProxyType({2: 0, 3: 1, 4: 2, 5: 2})


@dataclasses.dataclass(frozen=True)
class Plan:
    """The segments of a schedule for matrices of one aspect ratio.

    Attributes:
      segments: (start, stop) into the schedule, in order and without gaps. A segment of one step
        runs on X; more steps share one Gram matrix.
      wide: Products with the long side: (short, long)·(long, short), (short, short)·(short, long).
      square: Products of two (short, short) matrices.
    """

    segments: tuple[tuple[int, int], ...]
    wide: int
    square: int

    def flops(self, rows: int, cols: int) -> int:
        """Counts the FLOPs of all products; elementwise operations are about 1/short of them."""
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
    """Finds the cheapest segments within the rounding tolerance, by dynamic programming.

    Ties go to segments of similar length, then to those that amplify rounding less.

    Args:
      schedule: Coefficients of every step, 2 to 5 each.
      aspect: Long side over short side, at least 1.
      roundoff: Unit roundoff of the arithmetic; `ROUNDOFF` has the usual ones.
      tolerance: Bound on (product of slopes)²·roundoff in every segment of two or more steps.
      squared_by_norm: Whether the normalisation computes R² in any case.
    """
    powers = [_POWERS[len(step)] for step in schedule]
    powers[0] = max(powers[0], int(squared_by_norm))
    # best[stop] covers the first `stop` steps: rank to minimise, segments, wide, square.
    best = [((0.0, 0, 0.0), (), 0, 0)]
    for stop in range(1, len(schedule) + 1):
        candidates = []
        for start in range(stop):
            length = stop - start
            slope = math.prod(step[0] for step in schedule[start:stop])
            amplified = slope**2 * roundoff if length > 1 else 0.0
            if amplified > tolerance:
                continue
            (_, spread, rounding), segments, wide, square = best[start]
            wide += 2
            square += sum(powers[start:stop]) + 3 * (length - 1)
            rank = (wide * aspect + square, spread + length**2, rounding + amplified)
            candidates.append((rank, (*segments, (start, stop)), wide, square))
        best.append(min(candidates))
    _, segments, wide, square = best[-1]
    return Plan(segments, wide, square)


def _numbered(start: int, stop: int) -> str:
    return f"step {stop}" if stop - start == 1 else f"steps {start + 1}-{stop}"
