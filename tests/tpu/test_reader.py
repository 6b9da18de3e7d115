"""The reader of HLO on newly compiled TPU programs; `diagnostics/test_hlo.py` reads a saved one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.topologies import UnavailableError, compile_program, devices_of
from muon_jax.diagnostics import assert_lean, collectives

pytestmark = pytest.mark.tpu

SIDE = 512
BYTES = SIDE * SIDE * 4


@pytest.fixture
def mesh():
    return Mesh(np.array(devices_of("v5e:2x4")).reshape(4, 2), ("a", "b"))


def matrix(mesh, *spec, dtype="float32"):
    return jax.ShapeDtypeStruct((SIDE, SIDE), dtype, sharding=NamedSharding(mesh, P(*spec)))


def moved(mesh, x, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


def found(compiled):
    return [
        (each.kind, each.group, each.times, each.received_bytes)
        for each in collectives(compiled).operations
    ]


def test_a_gather_beside_a_product_is_asynchronous_and_counts_once(mesh):
    def run(x, y):
        return moved(mesh, x, None, None).T, jnp.tanh(y @ y)

    compiled = jax.jit(run).lower(matrix(mesh, "a"), matrix(mesh)).compile()
    assert compiled.as_text().count(" all-gather(") == 3
    assert found(compiled) == [("all-gather", 4, 1, BYTES * 3 / 4)]
    assert_lean(compiled, count=1, received_bytes=BYTES)


def test_an_all_to_all_receives_all_but_the_own_part(mesh):
    compiled = jax.jit(lambda x: moved(mesh, x + 1, None, ("a", "b"))).lower(
        matrix(mesh, ("a", "b"))
    )
    assert found(compiled.compile()) == [("all-to-all", 8, 1, BYTES / 8 * 7 / 8)]


def test_a_sum_of_which_each_device_keeps_a_part_is_a_reduce_scatter(mesh):
    compiled = jax.jit(lambda x: moved(mesh, x.T @ x, "a")).lower(matrix(mesh, "a")).compile()
    assert found(compiled) == [("reduce-scatter", 4, 1, BYTES * 3 / 4)]


def test_a_scan_repeats_what_stands_in_it(mesh):
    def run(x, y):
        def step(x, _):
            return moved(mesh, jnp.tanh(x @ moved(mesh, y + x.sum(), None, None)), "a"), None

        return jax.lax.scan(step, x, length=37)[0]

    compiled = jax.jit(run).lower(matrix(mesh, "a"), matrix(mesh, "a")).compile()
    gathers = [each for each in found(compiled) if each[0] == "all-gather"]
    assert sum(times for _, _, times, _ in gathers) == 37
    with pytest.raises(AssertionError, match="in loops or branches, not 0"):
        assert_lean(compiled, count=1000)


def test_products_are_priced_once_a_trip(mesh):
    def cycles(trips):
        def run(x):
            return jax.lax.fori_loop(0, trips, lambda _, x: jnp.tanh(x @ x), x)

        program = compile_program(jax.jit(run), matrix(mesh, dtype="bfloat16")).program
        assert program.uncounted_loops == 0
        return program.product_cycles

    assert cycles(200) == 2 * cycles(100) > 0


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e:3x5", "nonsense"])
def test_an_unknown_topology_is_one_line(topology):
    with pytest.raises(UnavailableError) as raised:
        devices_of(topology)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{topology}: no such topology (")
    assert line.endswith("; give one like v5e:2x4, v5p:2x2x2, v6e:16x16 or h100:8")
