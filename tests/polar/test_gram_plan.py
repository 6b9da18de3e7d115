"""The plan of the Gram form: the cheapest of all plans, exact in FLOPs, and accurate in float32."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_jax.polar._gram_plan import ROUNDOFF, TOLERANCE, Plan, plan
from muon_jax.polar._minimax import Schedule, evaluate
from muon_jax.polar._schedules import schedule

Segments = tuple[tuple[int, int], ...]


class Machine:
    """Runs a plan on a matrix step by step, and counts the FLOPs of its products."""

    def __init__(self) -> None:
        self.flops = 0

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def q(self, R: np.ndarray, R2: np.ndarray | None, link: tuple[float, ...]) -> np.ndarray:
        one = np.eye(len(R), dtype=R.dtype)
        c = [R.dtype.type(value) for value in (*link, 0, 0, 0)]
        q = c[0] * one + c[1] * R
        if len(link) > 2:
            R2 = self.product(R, R) if R2 is None else R2
            q = q + c[2] * R2
        if len(link) > 3:
            assert R2 is not None
            q = q + self.product(R2, c[3] * R + c[4] * R2)
        return q

    def run(self, X: np.ndarray, links: Schedule, segments: Segments) -> np.ndarray:
        R = self.product(X, X.T)
        R2 = self.product(R, R)
        bound = np.linalg.norm(R2) ** 0.25 or 1.0  # the Schatten-8 norm
        X, R, R2 = X / bound, R / bound**2, R2 / bound**4
        for start, stop in segments:
            if start > 0:
                R, R2 = self.product(X, X.T), None
            Q = q = self.q(R, R2, links[start])
            for link in links[start + 1 : stop]:
                R = self.product(q, self.product(R, q))
                q = self.q(R, None, link)
                Q = self.product(Q, q)
            X = self.product(Q, X)
        return X


def all_segments(steps: int) -> Iterator[Segments]:
    for cuts in itertools.product((False, True), repeat=steps - 1):
        edges = (0, *(i for i, cut in enumerate(cuts, 1) if cut), steps)
        yield tuple(itertools.pairwise(edges))


def magnified(links: Schedule, start: int, stop: int, roundoff: float) -> float:
    if stop - start == 1:
        return 0.0
    return math.prod(link[0] for link in links[start:stop]) ** 2 * roundoff


def with_spectrum(sigma: np.ndarray, cols: int) -> np.ndarray:
    random, rows = np.random.default_rng(0), len(sigma)
    u = np.linalg.qr(random.normal(size=(rows, rows)))[0]
    v = np.linalg.qr(random.normal(size=(cols, rows)))[0]
    return (u * sigma) @ v.T


def exact(X: np.ndarray, links: Schedule) -> np.ndarray:
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    return (u * evaluate(links, s / np.linalg.norm(s, 8))) @ vt


@given(
    links=st.lists(
        st.tuples(st.floats(1.0, 15.0), st.integers(1, 4)).map(lambda t: (t[0], *(0.01,) * t[1])),
        min_size=1,
        max_size=5,
    ).map(tuple),
    shape=st.tuples(st.integers(2, 4), st.integers(4, 40)),
    roundoff=st.sampled_from(sorted(set(ROUNDOFF.values()))),
)
@settings(deadline=None, max_examples=40)
def test_plan_is_the_cheapest_that_rounding_allows(links, shape, roundoff):
    def flops(segments: Segments) -> int:
        machine = Machine()
        machine.run(np.zeros(shape), links, segments)
        return machine.flops

    choices = [
        segments
        for segments in all_segments(len(links))
        if all(magnified(links, *segment, roundoff) <= TOLERANCE for segment in segments)
    ]
    found = plan(links, shape[1] / shape[0], roundoff=roundoff)
    assert found.segments in choices
    assert found.flops(*shape) == flops(found.segments) == min(map(flops, choices))
    assert found.flops(*shape[::-1]) == found.flops(*shape)


@pytest.mark.parametrize("name", ["fast", "accurate", "minimax", "cubic", "keller"])
@pytest.mark.parametrize("aspect", [1, 4])
def test_segments_compute_the_schedule(name, aspect):
    links = schedule(name)
    X = np.random.default_rng(0).normal(size=(24, 24 * aspect))
    segments = plan(links, aspect, roundoff=ROUNDOFF["float32"]).segments
    np.testing.assert_allclose(Machine().run(X, links, segments), exact(X, links), atol=1e-9)


@pytest.mark.parametrize("name", ["fast", "accurate", "minimax", "polar_express"])
@pytest.mark.parametrize("conditioning", [1e2, 1e4, 1e7])
def test_rounding_stays_below_what_the_plan_tolerates(name, conditioning):
    links = schedule(name)
    X = with_spectrum(np.geomspace(1, 1 / conditioning, 64), 256)
    segments = plan(links, 4, roundoff=ROUNDOFF["float32"]).segments
    assert any(stop - start > 1 for start, stop in segments)
    rounded = Machine().run(X.astype(np.float32), links, segments)
    assert np.linalg.norm(rounded - exact(X, links)) / 8 < 2 * TOLERANCE


def test_a_segment_beyond_the_tolerance_loses_the_result():
    links = schedule("polar_express", 8)
    X = with_spectrum(np.geomspace(1, 1e-7, 64), 256)
    rounded = Machine().run(X.astype(np.float32), links, ((0, 8),))
    assert np.linalg.norm(rounded - exact(X, links)) / 8 > 5 * TOLERANCE


@pytest.mark.parametrize("name", ["fast", "accurate", "minimax"])
def test_sharing_pays_above_aspect_one_and_a_half(name):
    links = schedule(name)
    for aspect, shares in ((1.0, False), (1.49, False), (1.51, True), (64.0, True)):
        found = plan(links, aspect, roundoff=ROUNDOFF["float32"])
        assert any(stop - start > 1 for start, stop in found.segments) == shares


@pytest.mark.parametrize("name", ["fast", "accurate", "minimax"])
def test_coarse_arithmetic_never_shares(name):
    links = schedule(name, arithmetic="bfloat16")
    found = plan(links, 64, roundoff=ROUNDOFF["bfloat16"])
    assert all(stop - start == 1 for start, stop in found.segments)


def test_without_tolerance_nothing_is_shared():
    found = plan(schedule("fast"), 64, roundoff=ROUNDOFF["float32"], tolerance=0.0)
    assert found.segments == ((0, 1), (1, 2), (2, 3))


def test_equally_cheap_plans_are_split_evenly_then_late():
    # The product of the first three slopes at 0 is larger than that of the last three.
    assert plan(schedule("minimax"), 4, roundoff=2**-24).segments == ((0, 2), (2, 5))
    assert plan(schedule("accurate"), 4, roundoff=2**-24).segments == ((0, 2), (2, 4))


@pytest.mark.parametrize(
    ("name", "shape", "most"),
    [
        ("fast", (512, 512), 0.80),
        ("fast", (256, 1024), 0.45),
        ("fast", (128, 2048), 0.27),
        ("accurate", (512, 512), 1.00),
        ("accurate", (256, 1024), 0.65),
        ("accurate", (128, 2048), 0.47),
    ],
)
def test_own_designs_cost_less_than_five_quintic_steps_on_x(name, shape, most):
    usual = plan(schedule("keller"), 1, roundoff=ROUNDOFF["float32"])
    ours = plan(schedule(name), shape[1] / shape[0], roundoff=ROUNDOFF["float32"])
    assert ours.flops(*shape) / usual.flops(*shape) <= most


@pytest.mark.parametrize(
    ("name", "aspect", "text"),
    [
        ("fast", 1, "steps 1-3 on X; 6 wide and 6 square products"),
        ("fast", 4, "steps 1-3 on one Gram matrix; 2 wide and 12 square products"),
        (
            "accurate",
            4,
            "steps 1-2 on one Gram matrix, steps 3-4 on one Gram matrix; "
            "4 wide and 13 square products",
        ),
    ],
)
def test_plan_reads_as_a_sentence(name, aspect, text):
    assert str(plan(schedule(name), aspect, roundoff=ROUNDOFF["float32"])) == text


def test_plan_names_single_steps():
    links = schedule("fast")
    found = plan(links, 4, roundoff=2.0**-16)
    assert str(found).startswith("step 1 on X, steps 2-3 on one Gram matrix; ")
    last = Plan(((0, 2), (2, 3)), wide=4, square=5)
    assert str(last).startswith("steps 1-2 on one Gram matrix, step 3 on X; 4 wide and 5 square")
