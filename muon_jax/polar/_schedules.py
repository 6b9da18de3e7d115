"""Named schedules: published coefficients with their sources, and designs of this library.

Every schedule expects singular values in [0, 1]. Sources divide by the Frobenius norm, which makes
them much smaller than one, or rescale rows, which changes the polar factor. By default muon_jax
divides by a tighter bound on the largest singular value.
"""

import dataclasses
import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from muon_jax._checks import check_choice, check_positive_int, invalid
from muon_jax.polar._minimax import Schedule, design, stretch

ScheduleName: TypeAlias = Literal[
    "fast",
    "accurate",
    "minimax",
    "keller",
    "you",
    "polar_express",
    "polar_express_safe",
    "dion",
    "gram_newton_schulz",
    "cans",
    "turbo",
    "cubic",
    "deepseek",
]
CoefficientsLike: TypeAlias = ScheduleName | Sequence[float] | Sequence[Sequence[float]]
"""A name, one row for all steps, or one row for each step."""

_REMEDY = "give a name, one row of 2 to 5 finite numbers, or a sequence of such rows"
_DEFAULT_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Published:
    """A published schedule.

    Attributes:
      rows: The coefficients of x, x³, … of every step.
      steps: The number of steps in the source.
      repeats: Whether the source repeats the last row for further steps.
      normalisation: The divisor of a matrix before the first step in the source.
      source: The address of the source.
      bare: Whether the rows have no margin for rounding: a singular value that rounding moves out
        of a row's interval may then grow without bound.
    """

    rows: Schedule
    steps: int
    normalisation: str
    source: str
    repeats: bool = False
    bare: bool = False


_KELLER = (3.4445, -4.7750, 2.0315)

# design end 1e-3, cushion 0.02407327424182761, eight steps
_POLAR_EXPRESS: Schedule = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def _with_margin(rows: Schedule, margin: float) -> Schedule:
    """Replaces p(x) by p(x / margin) in all rows but the last, as Polar Express in bfloat16."""
    return (*(stretch(row, margin) for row in rows[:-1]), rows[-1])


PUBLISHED = MappingProxyType(
    {
        # Fitted for the slope at 0; leaves singular values in about [0.7, 1.2].
        "keller": Published(
            (_KELLER,),
            steps=5,
            normalisation="Frobenius norm",
            source="https://kellerjordan.github.io/posts/muon/",
            repeats=True,
        ),
        # Fitted row by row. optax.contrib.muon calls it "dion", NVIDIA "quintic".
        "you": Published(
            (
                (4.0848, -6.8946, 2.9270),
                (3.9505, -6.3029, 2.6377),
                (3.7418, -5.5913, 2.3037),
                (2.8769, -3.1427, 1.2046),
                (2.8366, -3.0525, 1.2012),
            ),
            steps=5,
            normalisation="Frobenius norm",
            source="https://x.com/YouJiacheng/status/1905861218138804534",
        ),
        # The minimax schedule, without the safety factor of the authors' code.
        "polar_express": Published(
            _POLAR_EXPRESS,
            steps=5,
            normalisation="Frobenius norm × 1.01",
            source="https://arxiv.org/abs/2505.16932",
            repeats=True,
            bare=True,
        ),
        # As the authors' code runs it: safety 1.01 on all but the last of the eight rows.
        "polar_express_safe": Published(
            _with_margin(_POLAR_EXPRESS, 1.01),
            steps=5,
            normalisation="Frobenius norm × 1.01",
            source="https://arxiv.org/abs/2505.16932",
            repeats=True,
        ),
        # Polar Express designed for five steps: end 1e-3, cushion 0.02, safety 1.02 inside the
        # recursion. modded-nanogpt and nanochat run the same rows.
        "dion": Published(
            (
                (8.156554524902461, -22.48329292557795, 15.878769915207462),
                (4.042929935166739, -2.808917465908714, 0.5000178451051316),
                (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
                (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
                (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
            ),
            steps=5,
            normalisation="Frobenius norm × 1.02",
            source="https://github.com/microsoft/dion/blob/main/dion/polar_express.py",
        ),
        # Five rows of Polar Express with safety 1.05 on every one, the last included.
        "gram_newton_schulz": Published(
            tuple(stretch(row, 1.05) for row in _POLAR_EXPRESS[:5]),
            steps=5,
            normalisation="Frobenius norm",
            source="https://github.com/Dao-AILab/gram-newton-schulz",
        ),
        # The minimax schedule of design end 1e-3 without cushion or safety.
        "cans": Published(
            (
                (8.4703, -25.1081, 18.6293),
                (4.1828, -3.1087, 0.5806),
                (3.9619, -2.9541, 0.5630),
                (3.2866, -2.4647, 0.5074),
                (2.2737, -1.6447, 0.4162),
            ),
            steps=5,
            normalisation="Frobenius norm",
            source="https://arxiv.org/abs/2506.10935",
            bare=True,
        ),
        # Fitted to spectra after row rescaling, which muon_jax does not do. The authors' earlier
        # rows, which begin with (4.0098, -7.0585, 2.4635), are omitted: they map 1 to -1.
        "turbo": Published(
            (
                (4.6051, -9.6552, 5.6769),
                (4.7505, -6.0861, 2.1790),
                (2.7763, -2.3190, 0.5523),
                (2.4231, -2.2861, 0.8193),
            ),
            steps=4,
            normalisation="square roots of the row sums of |XXᵀ| (AOL)",
            source="https://github.com/microsoft/dion/blob/main/dion/newton_schulz_triton.py",
        ),
        # Minimax cubics of design end 7e-3, each stretched upwards to peak at 1.3.
        "cubic": Published(
            (
                (3.3656576, -3.3420992),
                (2.5744352, -1.4957376),
                (2.5368962, -1.4312570),
                (2.4418906, -1.2764040),
                (2.2230472, -0.9630650),
            ),
            steps=5,
            normalisation="Frobenius norm",
            source="https://arxiv.org/abs/2606.00371",
        ),
        # Eight steps towards 1 and two with a double fixed point at 1.
        "deepseek": Published(
            (*(_KELLER,) * 8, *((2.0, -1.5, 0.5),) * 2),
            steps=10,
            normalisation="Frobenius norm",
            source="https://huggingface.co/deepseek-ai/DeepSeek-V4-Pro",
        ),
    }
)

# The condition number for which the library's designs minimise their rms error. Polar error as a
# fraction of optax.contrib.muon's (0.190, 0.195, 0.445, 0.246), for a Gaussian 512×512 matrix,
# spectra log-uniform over 1e2 and 1e3, and momenta of a small language model where σ ≥ 1e-3 σ_max,
# by degrees and condition number:
#                        200                   500                   1000
#   9, 9, 9      .31 .08 .68 .89       .44 .33 .56 .75       .62 .55 .53 .74
#   9, 9, 9, 5   .23 .00 .41 .44       .20 .02 .23 .19       .21 .11 .13 .11
# Below 500 real momenta get worse, above it well-conditioned matrices.
_CONDITIONING = 500.0


@dataclasses.dataclass(frozen=True)
class _Designs:
    """The designs of this library for one arithmetic.

    Attributes:
      inflation: the margin for rounding.
      fast: the degrees of `"fast"`.
      accurate: the degrees of `"accurate"`.
      fast_conditioning: the condition number of `"fast"`.
    """

    inflation: float
    fast: tuple[int, ...]
    accurate: tuple[int, ...]
    fast_conditioning: float = _CONDITIONING


# On a wide interval a step of degree 9 has coefficients up to 600 and grows fast right above it, so
# only float32 is exact enough: with TF32 or float16 operands 9, 9, 9 gives singular values up to
# 3e4 on an ill-conditioned matrix, and with bf16 operands 9, 9, 9, 5 up to 1e3 on common ones.
# The last of four steps has a narrow interval and coefficients under 10; in the tests no result
# exceeds 1.22, though with bf16 operands some matrices give more. Five quintics (`minimax`) are
# more accurate (0.08 to 0.18 of optax's error on Gaussian matrices, where 5, 5, 5, 9 has 0.38), for
# 15 products instead of 13.
_DESIGNS = MappingProxyType(
    {
        "float32": _Designs(1.002, fast=(9, 9, 9), accurate=(9, 9, 9, 5)),
        "tensorfloat32": _Designs(1.005, fast=(5, 5, 5, 9), accurate=(5,) * 6),
        "float16": _Designs(1.005, fast=(5, 5, 5, 9), accurate=(5,) * 6),
        # At 500, spectra log-uniform over 1e3 have more than half of optax's error.
        "bfloat16": _Designs(1.01, fast=(5, 5, 5, 9), accurate=(5,) * 6, fast_conditioning=600.0),
    }
)

NAMES = get_args(ScheduleName)


def schedule(
    coefficients: CoefficientsLike, steps: int | None = None, *, arithmetic: str = "float32"
) -> Schedule:
    """Resolves a name or explicit coefficients to the polynomial of every step.

    Args:
      coefficients: `"fast"` or `"accurate"`, designs of this library; `"minimax"`, its design of
        `steps` quintic steps; a published name; one row for all steps; or one row for each step.
      steps: The number of steps. None is the design's or the source's own number, all rows of an
        explicit table, and otherwise 5.
      arithmetic: The format of products, for which the library's designs have a margin:
        `"float32"`, `"tensorfloat32"`, `"float16"` or `"bfloat16"`. Published rows are unchanged,
        except that bare ones get a margin for all but float32, because rounding would make them
        diverge.

    Returns:
      One tuple of 2 to 5 finite coefficients for each step.

    Raises:
      ValueError: For an unknown name, for rows of the wrong length or not finite, and for more
        steps than there are rows, unless the last one repeats.
      TypeError: For coefficients that are not numbers, and for steps that are not an integer.
    """
    if steps is not None:
        check_positive_int("steps", steps)
    if not isinstance(coefficients, str):
        rows = _validated(coefficients)
        one_row = len(rows) == 1
        return _take("the table", rows, steps or (_DEFAULT_STEPS if one_row else None), one_row)
    check_choice("coefficients", coefficients, NAMES)
    if coefficients in PUBLISHED:
        known = PUBLISHED[coefficients]
        rows = _take(repr(coefficients), known.rows, steps or known.steps, known.repeats)
        if known.bare and arithmetic != "float32":
            return _with_margin(rows, _DESIGNS[arithmetic].inflation)
        return rows
    return _own_design(coefficients, steps, _DESIGNS[arithmetic])


def _own_design(name: str, steps: int | None, designs: _Designs) -> Schedule:
    if name == "minimax":
        degrees = (5,) * (steps or _DEFAULT_STEPS)
    else:
        degrees = designs.fast if name == "fast" else designs.accurate
        if steps not in (None, len(degrees)):
            remedy = f"{name!r} has {len(degrees)} steps; leave steps out, or choose 'minimax'"
            raise invalid("steps", steps, remedy)
    conditioning = designs.fast_conditioning if name == "fast" else _CONDITIONING
    return design(degrees, conditioning=conditioning, inflation=designs.inflation)


def _take(name: str, rows: Schedule, steps: int | None, repeats: bool) -> Schedule:
    steps = steps or len(rows)
    missing = max(0, steps - len(rows))
    if missing and not repeats:
        remedy = f"{name} has {len(rows)} rows and no rule beyond them; take at most {len(rows)}"
        raise invalid("steps", steps, remedy)
    return rows[:steps] + rows[-1:] * missing


def _validated(coefficients: Any) -> Schedule:
    try:
        given = tuple(coefficients)
        rows = (given,) if given and np.ndim(given[0]) == 0 else given
        rows = tuple(tuple(float(c) for c in row) for row in rows)
    except (TypeError, ValueError):
        raise invalid("coefficients", coefficients, _REMEDY, TypeError) from None
    if not rows or not all(2 <= len(row) <= 5 and all(map(math.isfinite, row)) for row in rows):
        raise invalid("coefficients", coefficients, _REMEDY)
    return rows
