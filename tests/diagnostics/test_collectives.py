"""The HLO that XLA prints on each backend, and the figures read from it."""

import jax
import jax.numpy as jnp
import pytest

from muon_jax.diagnostics import Collective, assert_lean, collectives


class Program:
    """Stands for a compiled program."""

    def __init__(self, *instructions: str, others: str = ""):
        body = "\n".join(f"  {line}" for line in instructions)
        self.text = (
            "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"
            f"{others}\nENTRY %main.1_spmd (param: f32[8,4]) -> f32[8,4] {{\n{body}\n}}\n"
        )

    def as_text(self) -> str:
        return self.text


LISTED = "channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}"


@pytest.mark.parametrize(
    ("instruction", "kind", "group", "received"),
    [
        (f"%g = f32[8,4]{{1,0}} all-gather(%p), {LISTED}", "all-gather", 4, 96),
        (f"%r = f32[8,4]{{1,0}} all-reduce(%p), {LISTED}, to_apply=%add", "all-reduce", 4, 192),
        (f"ROOT %s = f32[2,4]{{1,0}} reduce-scatter(%p), {LISTED}", "reduce-scatter", 4, 96),
        (
            f"%a = (u16[1,8]{{1,0}}, u16[1,8]{{1,0}}, /*index=2*/u16[1,8]{{1,0}}, u16[1,8]{{1,0}}) "
            f"all-to-all(%w, %x, %y, %z), {LISTED}",
            "all-to-all",
            4,
            48,
        ),
        (
            "%c = bf16[8,4]{1,0:T(8,128)(2,1)} collective-permute(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            8,
            64,
        ),
        ("%g = f32[8,4]{1,0} all-gather(%p), replica_groups=[2,4]<=[8]", "all-gather", 4, 96),
        (
            "%g = f32[8,4]{1,0} all-gather(%p), "
            "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, dimensions={0}",
            "all-gather",
            2,
            64,
        ),
        (
            "%g = f32[8,4]{0,1} all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=2,"
            "'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1','axis_2'}, dimensions={1}",
            "all-gather",
            4,
            96,
        ),
        ("%r = pred[16]{0} all-reduce(%p), replica_groups={}, to_apply=%or", "all-reduce", 8, 28),
    ],
)
def test_every_notation_is_read(instruction, kind, group, received):
    (found,) = collectives(Program(instruction)).operations
    assert found == Collective(kind, group, 1, received, False, False)


def test_an_asynchronous_collective_counts_once_and_by_its_result():
    found = collectives(
        Program(
            f"%ags = (f32[2,4]{{1,0}}, f32[8,4]{{1,0}}) all-gather-start(%p), {LISTED}",
            "%agd = f32[8,4]{1,0} all-gather-done(%ags)",
            f"%ars = f32[8,4]{{1,0}} all-reduce-start(%p), {LISTED}, to_apply=%add",
            "%ard = f32[8,4]{1,0} all-reduce-done(%ars)",
            "%cps = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1}}",
            "%cpd = f32[8,4]{1,0} collective-permute-done(%cps)",
            "%as = ((f32[8,4]{1,0}), f32[8,4]{1,0}, u32[]) async-start(%p), calls=%wrapped",
            "%ad = f32[8,4]{1,0} async-done(%as)",
            others=(
                "%wrapped (param.1: f32[8,4]) -> f32[8,4] {\n"
                f"  ROOT %a2a = f32[8,4]{{1,0}} all-to-all(%param.1), {LISTED}\n}}\n"
            ),
        )
    )
    received = [(each.kind, each.received_bytes) for each in found.operations]
    assert received == [
        ("all-gather", 96),
        ("all-reduce", 192),
        ("collective-permute", 128),
        ("all-to-all", 96),
    ]


LOOP = """%body.2 (s: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %g.2 = f32[8,4]{1,0} all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%condition.2 (s.1: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
"""


@pytest.mark.parametrize(
    ("config", "times"),
    [(', backend_config={"known_trip_count":{"n":"5"},"x":"y"}', 5), ("", 1)],
)
def test_a_loop_multiplies_what_stands_in_it(config, times):
    found = collectives(
        Program(
            "%w = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition.2, body=%body.2" + config,
            others=LOOP,
        )
    )
    assert found.operations == (Collective("all-gather", 4, times, times * 96, True, False),)
    assert found.nested == found
    assert found.count == times


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%body.2, %condition.2}",
        "true_computation=%condition.2, false_computation=%body.2",
    ],
)
def test_a_branch_is_named(branches):
    found = collectives(
        Program(f"%c = (f32[8,4]{{1,0}}) conditional(%i, %t, %t), {branches}", others=LOOP)
    )
    assert found.operations == (Collective("all-gather", 4, 1, 96, False, True),)


def test_a_group_of_one_says_nothing():
    alone = "%r = f32[8]{0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add"
    assert collectives(Program(alone)).operations == ()


def test_sums_go_by_kind():
    found = collectives(
        Program(
            f"%g = f32[8,4]{{1,0}} all-gather(%p), {LISTED}",
            f"%h = f32[8,8]{{1,0}} all-gather(%p), {LISTED}",
            f"%r = f32[8,4]{{1,0}} all-reduce(%p), {LISTED}, to_apply=%add",
        )
    )
    assert {kind: (each.count, each.received_bytes) for kind, each in found.by_kind().items()} == {
        "all-gather": (2, 288),
        "all-reduce": (1, 192),
    }


def test_what_was_found_is_printed_by_kind():
    found = collectives(
        Program(
            f"%g = f32[512,1024]{{1,0}} all-gather(%p), {LISTED}",
            f"%r = f32[8,4]{{1,0}} all-reduce(%p), {LISTED}, to_apply=%add",
        )
    )
    assert str(found).splitlines() == [
        "1 all-gather, 0 in loops or branches: 1.50 MiB to each device",
        "1 all-reduce, 0 in loops or branches: 0.00 MiB to each device",
    ]
    assert str(collectives(Program())) == "no collectives"


STEP = Program(*[f"%g{i} = f32[8,4]{{1,0}} all-gather(%p), {LISTED}" for i in range(3)])
GRADIENTS = Program(f"%g = f32[8,4]{{1,0}} all-gather(%p), {LISTED}")
SCANNED = Program(
    "%w = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition.2, body=%body.2, "
    'backend_config={"known_trip_count":{"n":"2"}}',
    others=LOOP,
)
BRANCHED = Program(
    "%c = (f32[8,4]{1,0}) conditional(%i, %t, %t), branch_computations={%body.2, %condition.2}",
    others=LOOP,
)


def test_a_lean_step_passes():
    assert_lean(STEP, count=3)
    assert_lean(STEP, count=2, received_bytes=192, baseline=GRADIENTS)
    assert_lean(SCANNED, count=2, nested=True)
    assert_lean(SCANNED, count=0, baseline=SCANNED)
    assert_lean(jax.jit(jnp.sin).lower(1.0).compile(), count=0)


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        (STEP, {"count": 2}, "has 3 collectives, not 2. "),
        (
            STEP,
            {"count": 1, "received_bytes": 191, "baseline": GRADIENTS},
            "has 2 collectives, not 1 and 192 bytes to each device, not 191 beyond the baseline",
        ),
        (SCANNED, {"count": 2}, "has 2 collectives in loops or branches, not 0"),
        (BRANCHED, {"count": 1}, "has 1 collective in loops or branches, not 0"),
    ],
)
def test_a_step_that_is_not_lean_is_shown(program, arguments, words):
    with pytest.raises(AssertionError) as raised:
        assert_lean(program, **arguments)
    assert str(raised.value).startswith("muon_jax.diagnostics.assert_lean: the program ")
    assert words in str(raised.value)
    assert "all-gather" in str(raised.value)


@pytest.mark.parametrize("program", [jax.jit(jnp.sin), jax.jit(jnp.sin).lower(1.0), "HloModule"])
def test_only_compiled_programs_have_collectives(program):
    with pytest.raises(TypeError, match=r"collectives\(compiled=.*\): give a compiled program"):
        collectives(program)
