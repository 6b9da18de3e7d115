"""Reads one program, which `golden/write_hlo.py` compiled for every platform."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from muon_jax.diagnostics import Collectives
from muon_jax.diagnostics._hlo import Collective, Program, read_program

SAVED = Path(__file__).resolve().parent.parent / "golden" / "hlo"
WIDE = 256 * 256 * 4
"""Bytes of the program's matrices in float32; 4 × 2 devices hold them by rows."""


def saved(platform: str) -> Program:
    program = read_program((SAVED / f"{platform}.txt").read_text())
    assert program is not None
    return program


def gathered(size: float, group: int = 4, times: int = 1, **inside: bool) -> Collective:
    place = {"in_loop": False, "in_branch": False} | inside
    received = times * size * (group - 1) / group
    return Collective("all-gather", group, times, received, **place)


def test_every_collective_of_a_tpu_program_counts_once():
    found = Counter(saved("tpu").collectives)
    assert found == Counter(
        [
            Collective("reduce-scatter", 4, 1, WIDE / 4 * 3, False, False),
            gathered(WIDE),  # asynchronous, in three fusions
            gathered(WIDE / 2),  # products are in bfloat16, so bfloat16 is gathered
            gathered(WIDE / 2),
            gathered(WIDE / 2, group=2),
            gathered(WIDE / 2, times=5, in_loop=True),
            gathered(WIDE / 2, in_loop=True),
            gathered(WIDE / 2, in_branch=True),
            gathered(WIDE / 2, in_branch=True),
        ]
    )


def test_every_collective_of_a_cuda_program_counts_once():
    found = Counter(saved("cuda").collectives)
    assert found == Counter(
        [
            Collective("reduce-scatter", 4, 1, WIDE / 4 * 3, False, False),
            gathered(3 * WIDE),  # three arrays at once
            gathered(WIDE, group=2),
            gathered(WIDE, times=5, in_loop=True),
            gathered(WIDE, in_loop=True),
            gathered(WIDE, in_branch=True),
            gathered(WIDE, in_branch=True),
            gathered(2 * WIDE, in_branch=True),
            gathered(WIDE, in_branch=True),
        ]
    )


def test_every_collective_of_a_cpu_program_counts_once():
    found = Counter(saved("cpu").collectives)
    assert found == Counter(
        [
            Collective("all-reduce", 4, 1, 2 * WIDE / 4 * 3, False, False),
            *[gathered(WIDE)] * 4,
            gathered(WIDE, group=2),
            gathered(WIDE, in_loop=True),
            *[gathered(WIDE, in_branch=True)] * 3,
        ]
    )


def test_prices_are_those_of_the_busiest_branch_and_multiply_in_loops():
    # In the order of the text: the loop of five, the loop of n with the loop of six in it, the
    # first branch, and operations outside.
    program = saved("tpu")
    assert program.product_cycles == 5 * 320 + 320 + 673 + 384 + 2845
    assert program.other_cycles == (
        5 * 20 + (2094 + 6 * 1965 + 20) + 2094 + (1973 + 2094 + 1826 + 2239 + 20 + 2433)
    )
    assert program.cycles == program.product_cycles + program.other_cycles


@pytest.mark.parametrize("platform", ["tpu", "cuda", "cpu"])
def test_only_the_loop_of_n_is_uncounted(platform):
    program = saved(platform)
    assert program.uncounted_loops == 1
    assert {each.times for each in program.collectives} <= {1, 5}


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_other_platforms_have_no_prices(platform):
    assert saved(platform).cycles == 0


def test_a_living_program_is_read():
    def run(x, n):
        x = jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ x) * i, x)
        return jax.lax.while_loop(lambda x: x.sum() < n, lambda x: x + 1, x)

    compiled = jax.jit(run).lower(jnp.ones((8, 8)), 5.0).compile()
    program = read_program(compiled.as_text())
    assert program.lines == compiled.as_text().count("\n")
    assert program == Program(uncounted_loops=1, lines=program.lines)


def test_other_texts_are_no_programs():
    assert read_program("") is None
    assert read_program(jax.jit(jnp.sin).lower(1.0).as_text()) is None


# Trip counts, as programs of XLA:TPU state them.

LOOP = """HloModule jit_step, num_partitions=8

%increase (a: s32[]) -> s32[] {{
  %a = s32[] parameter(0)
  %one = s32[] constant({step})
  ROOT %sum = s32[] add(%a, %one)
}}

%body (s: (s32[], f32[8,4], s32[])) -> (s32[], f32[8,4], s32[]) {{
  %s = (s32[], f32[8,4]{{1,0}}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{{1,0}} get-tuple-element(%s), index=1
  %n = s32[] get-tuple-element(%s), index=2
  %next = s32[] fusion(%i), kind=kLoop, calls=%increase
  %g = f32[8,4]{{1,0}} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={{0}}
  ROOT %out = (s32[], f32[8,4]{{1,0}}, s32[]) tuple(%next, %g, %n)
}}

%condition (t: (s32[], f32[8,4], s32[])) -> pred[] {{
  %t = (s32[], f32[8,4]{{1,0}}, s32[]) parameter(0)
  %five = s32[]{{:T(128)}} constant(5)
  %j = s32[] get-tuple-element(%t), index=0
  %m = s32[] get-tuple-element(%t), index=2
  ROOT %more = pred[] compare(%j, %{limit}), direction={direction}
}}

ENTRY %main (p: f32[8,4], q: s32[]) -> f32[8,4] {{
  %p = f32[8,4]{{1,0}} parameter(0)
  %q = s32[] parameter(1)
  %start = s32[]{{:T(128)}} constant({start})
  %nine = s32[] constant(9)
  %copied = s32[] copy(%start)
  %all = (s32[], f32[8,4]{{1,0}}, s32[]) tuple(%copied, %p, %{last})
  %w = (s32[], f32[8,4]{{1,0}}, s32[]) while(%all), condition=%condition, body=%body
  ROOT %r = f32[8,4]{{1,0}} get-tuple-element(%w), index=1
}}
"""
USUAL = {"start": 0, "step": 1, "limit": "five", "direction": "LT", "last": "nine"}


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({}, 5),
        ({"start": 2}, 3),
        ({"start": -1, "step": 4}, 2),
        ({"limit": "m"}, 9),
        ({"start": 5}, 0),
    ],
)
def test_trips_are_counted(changes, times):
    program = read_program(LOOP.format(**USUAL | changes))
    assert program.uncounted_loops == 0
    assert Collectives(program.collectives).count == times


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": "m", "last": "q"},
        {"limit": "m", "last": "missing"},
        {"direction": "NE"},
        {"step": 0},
        {"limit": "j"},
    ],
)
def test_unknown_trips_count_once(changes):
    program = read_program(LOOP.format(**USUAL | changes))
    assert program.uncounted_loops == 1
    assert Collectives(program.collectives).count == 1


def test_what_goes_through_many_tuples_is_followed_once():
    pairs = [
        f"""  %a{i} = s32[] get-tuple-element(%pair{i - 1}), index=0
  %b{i} = s32[] get-tuple-element(%pair{i - 1}), index=1
  %pair{i} = (s32[], s32[]) tuple(%a{i}, %b{i})"""
        for i in range(1, 60)
    ]
    first = "  %pair0 = (s32[], s32[]) tuple(%start, %start)"
    text = LOOP.format(**USUAL).replace("copy(%start)", "copy(%b59)")
    text = text.replace("  %copied", "\n".join([first, *pairs, "  %copied"]))
    program = read_program(text)
    assert program.uncounted_loops == 0
    assert Collectives(program.collectives).count == 5
