"""Matrices are distributed over all devices, and nothing is sent twice.

`mesh_cases.py` runs all cases in one process with eight devices. It skips the cases of its `SLOW`
if no slow test of this file is selected.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from covering import covering
from processes import fast_alone, measured_once

from benchmarks.mesh_bounds import (
    COLLECTIVES,
    SHARDS_AND_REPLICAS,
    TEMPORARY_SHARE,
    WIRE,
    wire_bytes,
)
from tests.mesh_cases import choices
from tests.mesh_refusals import REFUSED
from tests.mesh_states import PRECONDITIONERS

WIDTH, LAYERS, STEPS = 128, 8, 2
WEIGHTS = LAYERS * 12 * WIDTH**2 * 4
MATRIX_COSTS = [STEPS * (4 * k + 2) * WIDTH**3 for k in (3, 1, 4, 4)]
EXACT = 2e-5
"""Largest float32 difference allowed between a mesh and one device, in any entry."""

WHOLE_STEPS = [
    (layout, kind, "scanned") for layout in COLLECTIVES for kind in ("Auto", "Explicit")
] + [("replicated", "Auto", "apart"), ("2d", "Auto", "apart"), ("hsdp", "Explicit", "apart")]


@pytest.fixture(scope="session")
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, testrun_uid: str
) -> Mapping[str, Any]:
    folder = tmp_path_factory.getbasetemp().parent
    speed = fast_alone(request, __file__)
    found = measured_once("mesh_cases", *speed, folder=folder, run=testrun_uid)
    assert "failed" not in found, found
    return found


def found(measured: Mapping[str, Any], *name: Any) -> Mapping[str, Any]:
    result = measured[" ".join(map(str, name))]
    assert "raised" not in result, result
    return result


each_whole_step = pytest.mark.parametrize(
    ("layout", "kind", "form"), choices("whole_step", WHOLE_STEPS)
)


@each_whole_step
def test_a_step_moves_every_shard_once(measured, layout, kind, form):
    step = found(measured, "whole_step", layout, kind, form)
    assert step["kinds"] == COLLECTIVES[layout]
    assert step["nested"] == 0
    bound = WIRE.get(layout, 1.05)
    assert step["bytes"] <= bound * wire_bytes(WEIGHTS, *SHARDS_AND_REPLICAS[layout])


@each_whole_step
def test_a_step_shares_the_work_evenly(measured, layout, kind, form):
    step = found(measured, "whole_step", layout, kind, form)
    assert step["flops"] <= 1.15 * LAYERS * sum(MATRIX_COSTS) / 8


@each_whole_step
def test_a_step_gives_what_one_device_gives_where_the_parameters_lie(measured, layout, kind, form):
    step = found(measured, "whole_step", layout, kind, form)
    assert step["error"] < EXACT
    assert step["kept"]


@each_whole_step
def test_a_step_keeps_little_beside_its_state(measured, layout, kind, form):
    step = found(measured, "whole_step", layout, kind, form)
    assert step["aliased"]
    assert step["temporary_bytes"] <= 1.25 * TEMPORARY_SHARE[layout] * WEIGHTS


@pytest.mark.parametrize("layout", covering(COLLECTIVES, fast=["fsdp"]))
def test_explicit_axes_cost_what_auto_axes_cost(measured, layout):
    auto, explicit = (
        found(measured, "whole_step", layout, kind, "scanned") for kind in ("Auto", "Explicit")
    )
    assert auto["bytes"] == explicit["bytes"]
    assert auto["kinds"] == explicit["kinds"]


@pytest.mark.parametrize(
    ("layout", "kind"),
    choices(
        "narrow_wire",
        [("replicated", "Auto"), ("fsdp", "Auto"), ("hsdp", "Auto"), ("fsdp", "Explicit")],
    ),
)
def test_communication_in_bfloat16_costs_its_rounding(measured, layout, kind):
    """Only TPU programs send half of the bytes, because XLA:CPU widens bfloat16 to float32."""
    narrow = found(measured, "narrow_wire", layout, kind)
    assert EXACT < narrow["error"] < 2**-6


@pytest.mark.parametrize("count", choices("layers", [2, 6, 8, 12]))
def test_any_number_of_layers_moves_in_the_same_collectives(measured, count):
    """Layers that do not divide the devices evenly are tested in `test_slots.py`."""
    assert found(measured, "layers", count)["kinds"] == {"all-to-all": 8}


PLACES = {
    "layers": {},
    "scanned": {"all-to-all": 2},
    "experts": {},
    "expert×tensor": {"all-to-all": 6, "all-gather": 5, "all-reduce": 1},
    "3d": {"all-to-all": 12, "all-gather": 4, "collective-permute": 2},
    "narrow axes": {"all-to-all": 4},
}
"""By name of the case. The second and third of these do not divide their devices."""


@pytest.mark.parametrize(
    "case",
    [f"place {name} Auto" for name in PLACES]
    + ["place 3d Explicit", "place narrow axes Explicit", "mixed Explicit Auto"],
)
def test_leaves_of_every_sort_move_in_few_collectives(measured, case):
    result = found(measured, case)
    name = next((name for name in PLACES if name in case), "expert×tensor")
    assert result["kinds"] == PLACES[name]
    assert result["error"] < EXACT
    assert result["kept"]


def test_fused_leaves_are_cut_by_their_owner(measured):
    result = found(measured, "views")
    assert result["error"] < EXACT
    assert result["kept"]


@pytest.mark.parametrize(("whom", "gathers"), [("replica", 3), ("nobody", 1)])
def test_work_is_shared_along_the_named_axes_only(measured, whom, gathers):
    result = found(measured, "shared_by", whom)
    assert result["kinds"] == {"all-gather": gathers}
    assert result["error"] < EXACT


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_zero1_sends_shards_to_owners_and_results_to_all(measured, kind):
    result = found(measured, "zero1", kind)
    assert result["kinds"] == {"all-to-all": 2, "all-gather": 3}
    assert result["error"] < EXACT
    assert result["kept"]
    assert result["specs"] == {
        "stack": "P('data', None, None)",
        "out": "P('data', None)",
        "odd": "P(None, 'data')",
    }


@pytest.mark.parametrize("kind", choices("second_step", ["Auto", "Explicit"]))
def test_a_second_step_compiles_nothing(measured, kind):
    assert found(measured, "second_step", kind) == {"muon": 0, "momentum_rms": 0}


@pytest.mark.parametrize(
    "transformation",
    [
        "scale_by_muon",
        "scale_by_momentum_rms",
        "scale_by_muon of what it closes over",
        "scale_by_muon of what lies on a mixed mesh",
    ],
)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_traced_init_puts_momentum_where_the_parameters_lie(measured, kind, transformation):
    assert found(measured, "traced_init", kind)[transformation]


@pytest.mark.parametrize("kind", choices("skipped", ["Auto", "Explicit"]))
def test_a_step_that_overflows_on_one_shard_is_skipped_on_all(measured, kind):
    result = found(measured, "skipped", kind)
    assert (result["skipped"], result["changed"]) == ([0, 1], 0)
    assert result["error"] < EXACT
    assert result["kept"]


@pytest.mark.parametrize(
    ("kind", "preconditioner"),
    choices("preconditioned", itertools.product(["Auto", "Explicit"], PRECONDITIONERS)),
)
def test_a_preconditioned_step_is_that_of_one_device(measured, kind, preconditioner):
    result = found(measured, "preconditioned", kind, preconditioner)
    assert result["error"] < 1e-4
    assert result["lies"]


@pytest.mark.parametrize("kind", choices("soap_at_owners", ["Auto", "Explicit"]))
def test_owners_keep_the_statistics_of_soap(measured, kind):
    result = found(measured, "soap_at_owners", kind)
    # Momentum and gradient go to the owners, and the quotient returns. So does its polar factor.
    assert result["kinds"] == {"all-to-all": 3 + 2}
    assert result["axes"] == {"layer_#/up": 0, "odd": 2}
    assert result["lies"]
    assert result["second step"] == 0
    assert result["error"] < 1e-4


@pytest.mark.parametrize(
    ("kind", "dtype"),
    choices("quantized", [("Auto", "int8"), ("Explicit", "int8"), ("Explicit", "bfloat16")]),
)
def test_a_state_in_fewer_bits_is_sharded_as_before_and_sends_nothing(measured, kind, dtype):
    assert found(measured, "quantized", kind, dtype) == {"lies": True, "more": 0}


@pytest.mark.parametrize(
    ("what", "nested"),
    [
        ("nnx", 0),
        pytest.param("TrainState", 0, marks=pytest.mark.slow),
        pytest.param("MultiSteps", 0, marks=pytest.mark.slow),
        pytest.param("given specs", 0, marks=pytest.mark.slow),
        ("apply_if_finite", 12),  # the whole update is in a conditional
        ("scan", 36),  # three steps, in a loop
    ],
)
def test_what_stands_around_a_step_changes_nothing(measured, what, nested):
    result = found(measured, "around", what)
    exchanges = 3 if what == "scan" else 1
    counts = [result["kinds"]["all-to-all"], result["kinds"]["all-gather"], result["nested"]]
    assert counts == [8 * exchanges, 4 * exchanges, nested]
    assert result["error"] < EXACT
    assert result["kept"]


@pytest.mark.parametrize(
    "case",
    choices(
        "",
        [
            "eager",
            "array_in_the_orthogonalizer",
            "before_shardy",
            "turned Auto",
            "turned Explicit",
            "manual_along_some_axes True",
            "manual_along_some_axes False",
        ],
    ),
)
def test_it_runs_there_too(measured, case):
    result = found(measured, case)
    assert result["error"] < EXACT
    assert result["kept"]


def test_a_cache_of_programs_tells_every_setting(measured):
    *different, again = found(measured, "in_a_cache_of_programs")["programs"]
    assert len(set(different)) == len(different)
    assert again == different[0]


@pytest.mark.parametrize("case", choices("", ["vmapped Auto", "vmapped Explicit"]))
def test_vmap_adds_a_batch_axis(measured, case):
    assert found(measured, case)["error"] < EXACT


@pytest.mark.parametrize(
    "kinds", choices("left_to_the_compiler", ["Explicit", "Explicit Auto", "Auto Explicit"])
)
def test_what_is_left_to_the_compiler_lies_as_it_lay(measured, kinds):
    for result in found(measured, "left_to_the_compiler", kinds).values():
        assert result["error"] < EXACT
        assert result["kept"]


@pytest.mark.parametrize("where", choices("beside_leaves_on_no_mesh", ["first", "last"]))
def test_a_leaf_on_no_mesh_goes_along(measured, where):
    for result in found(measured, "beside_leaves_on_no_mesh", where).values():
        assert result["error"] < EXACT
        assert result["kept"]


@pytest.mark.parametrize(
    ("kind", "dtype", "wire_dtype"),
    choices(
        "derivative",
        itertools.product(("Auto", "Explicit"), ("float32", "bfloat16"), (None, "bfloat16")),
    ),
)
def test_what_is_known_has_a_derivative(measured, kind, dtype, wire_dtype):
    narrow = "bfloat16" in (dtype, wire_dtype)
    result = found(measured, "derivative", kind, dtype, wire_dtype)
    assert result["error"] < (2**-6 if narrow else EXACT)  # cotangents travel in bfloat16 too


def test_no_tracer_leaks_into_the_operation(measured):
    assert found(measured, "no_leaks")["error"] < EXACT


@pytest.mark.parametrize("named", [None, "model"])
def test_vmap_over_a_sharded_axis_moves_nothing_along_it(measured, named):
    result = found(measured, "vmapped_over_sharded_axis", named)
    assert result["error"] < EXACT
    assert result["kinds"] == {"all-to-all": 2}
    assert result["bytes"] == wire_bytes(8 * 32 * 64 * 4 / 2, 4, 1)


def test_a_training_step_adds_only_the_exchange(measured):
    """The case calls `assert_lean` with AdamW as baseline, as a user would."""
    ours, adamw = found(measured, "training_adds_only_the_exchange").values()
    assert ours["count"] - adamw["count"] == 4


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        pytest.param("manual replicated True", "replicated", marks=pytest.mark.slow),
        ("manual 2d True", "2d"),
        pytest.param("manual hsdp True", "hsdp", marks=pytest.mark.slow),
        ("manual hsdp False", "hsdp"),
        ("manual_and_provably_whole", "replicated"),
    ],
)
def test_inside_shard_map_specs_are_all_it_needs(measured, case, layout):
    result = found(measured, case)
    assert result["kinds"] == COLLECTIVES[layout]
    assert result["error"] < EXACT
    assert result["kept"]


@pytest.mark.parametrize(
    "which",
    choices(
        "manual_with", ["newton_schulz", "in bfloat16", "polar_by_svd", "inverse_sqrt", "polar_to"]
    ),
)
def test_every_orthogonalizer_runs_inside_shard_map(measured, which):
    assert found(measured, "manual_with", which)["error"] < EXACT


@pytest.mark.parametrize("which", ["NamedShardings", "set_mesh"])
def test_a_mesh_may_be_named_by_the_specs_or_around_the_step(measured, which):
    result = found(measured, "mesh_of_specs", which)
    assert result["kinds"] == {"all-to-all": 2}
    assert result["error"] < EXACT
    assert result["kept"]


def test_a_program_whose_types_name_no_mesh_takes_that_in_context_or_warns(measured):
    result = found(measured, "placed_by_in_shardings")
    (message,) = result["messages"]
    assert message.startswith("muon_jax.scale_by_muon: this program has 8 devices")
    assert "jax.set_mesh(mesh)" in message
    assert "Distribution.like(params)" in message
    assert result["warnings"] == 1
    assert result["kinds"] == {"all-to-all": 2}


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_specs_may_leave_out_an_axis_of_one_device(measured, kind):
    result = found(measured, "specs_without_an_axis_of_one_device", kind)
    assert result["error"] < EXACT
    assert result["kept"]


@pytest.mark.parametrize("kind", choices("gradients_that_lie_otherwise", ["Auto", "Explicit"]))
def test_whole_gradients_give_updates_that_lie_as_the_parameters(measured, kind):
    result = found(measured, "gradients_that_lie_otherwise", kind)
    assert result["error"] < EXACT
    assert result["kept"]


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_with_the_remedy(measured, case):
    complaint, remedy = REFUSED[case]
    assert measured[case] == {
        "raised": "ValueError",
        "message": f"muon_jax.scale_by_muon: {complaint}. {remedy}.",
    }


@pytest.mark.parametrize("kind", choices("monitored", ["Auto", "Explicit"]))
def test_measurements_are_those_of_one_device_and_gather_only_when_due(measured, kind):
    result = found(measured, "monitored", kind)
    assert result["same"]
    assert result["traces"] == 1
    assert result["outside a branch"] == 0 < result["in branches"]
