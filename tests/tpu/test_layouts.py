"""Every layout, kind of mesh and kind of step compiles for TPUs, with a bound on communication.

Each test compiles one program; `tpu_programs.Case` checks it.
"""

import itertools

import pytest
from tpu_programs import Case, muon

from benchmarks.models import LAYOUTS, abstract, make_mesh, place, transformer
from benchmarks.topologies import compile_step, devices_of
from muon_jax.diagnostics import Collectives

pytestmark = pytest.mark.tpu

KINDS = ("Auto", "Explicit")
TWO_AXES = ("fsdp × tensor", "HSDP", "expert")
STEPS = ("update", "scan_over_steps", "multi_steps", "train_state", "nnx_optimizer")


def model_of(layout):
    return "experts" if layout == "expert" else "apart"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_donated_update(layout, kind):
    case = Case(layout, kind, model_of(layout))
    received = Collectives(case.update(muon()).program.collectives).received_bytes
    if layout != "expert":  # no matrix moves
        assert received <= (1.5 if case.layout.is_sharded else 2) * case.formula()


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]], ids="-".join)
@pytest.mark.parametrize("layout", TWO_AXES)
def test_a_mixed_mesh(layout, kinds):
    Case(layout, kinds, model_of(layout)).update(muon())


@pytest.mark.parametrize(
    ("layout", "kind"), [("fsdp", "Auto"), ("tensor", "Explicit"), ("fsdp × tensor", "Auto")]
)
def test_scanned_leaves(layout, kind):
    Case(layout, kind, "scanned").update(muon())


@pytest.mark.parametrize(
    ("step", "layout", "kind"),
    [
        ("scan_over_steps", "fsdp", "Auto"),
        ("scan_over_steps", "fsdp × tensor", "Explicit"),
        ("multi_steps", "tensor", "Auto"),
        ("multi_steps", "HSDP", "Explicit"),
        ("train_state", "replicated", "Auto"),
        ("train_state", "fsdp × tensor", "Explicit"),
        ("nnx_optimizer", "fsdp × tensor", "Auto"),
        ("nnx_optimizer", "fsdp", "Explicit"),
    ],
)
def test_a_step_around_the_update(step, layout, kind):
    getattr(Case(layout, kind), step)(muon())


@pytest.mark.parametrize("layout", ["fsdp", "fsdp × tensor"])
def test_arguments_placed_by_in_shardings_on_the_mesh_in_context(layout):
    Case(layout).update(muon(), in_shardings=True)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_bfloat16(kind):
    Case("fsdp × tensor", kind, dtype="bfloat16").update(muon())


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v6e:8x16", "v5e:16x16"])
def test_larger_topologies(topology):
    Case("fsdp × tensor", topology=topology).update(muon())


def test_owners_compute_the_statistics_of_soap_alone():
    layout = LAYOUTS["fsdp"]
    mesh = make_mesh(layout, devices_of("v5e:2x4"))
    params = place(abstract(transformer(8, 128)), mesh, layout)
    figures = compile_step(muon(precondition="soap"), params, layout)
    assert {each.kind for each in figures.program.collectives} == {"all-to-all"}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind", "step"), list(itertools.product(LAYOUTS, KINDS, STEPS)))
def test_all_steps_on_all_layouts(layout, kind, step):
    getattr(Case(layout, kind, model_of(layout)), step)(muon())
