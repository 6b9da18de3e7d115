"""State is sharded over the devices that replicate the parameters, on top of their sharding."""

import re

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from routes import array

from muon_jax import zero1_shardings

MESH = AbstractMesh((2, 3), ("data", "fsdp"))


def leaf(shape, spec):
    return array(*shape, sharding=NamedSharding(MESH, spec))


@pytest.mark.parametrize(
    ("shape", "held", "axis", "expected"),
    [
        ((4, 6), P(), "data", P("data", None)),
        ((3, 6), P(), "data", P(None, "data")),
        ((3, 5), P(), "data", P(None, None)),
        ((12, 6), P("fsdp"), "data", P(("fsdp", "data"), None)),
        ((3, 6), P("fsdp"), "data", P("fsdp", "data")),
        ((4, 6), P("data"), "data", P("data", None)),
        ((4, 6), P(None, "data"), "data", P(None, "data")),
        ((4, 6), P(), ("data", "fsdp"), P(None, ("data", "fsdp"))),
        ((12, 6), P(None, "fsdp"), ["data", "fsdp"], P(None, "fsdp")),
    ],
)
def test_the_first_axis_that_divides_is_sharded_too(shape, held, axis, expected):
    found = zero1_shardings({"kernel": leaf(shape, held)}, MESH, axis)["kernel"]
    assert found.mesh == MESH
    assert found.spec == expected


def test_what_lies_on_no_mesh_counts_as_repeated():
    assert zero1_shardings(array(4, 6), MESH, "data").spec == P("data", None)
    assert zero1_shardings(jnp.ones((4, 6)), MESH, "data").spec == P("data", None)


def test_the_axis_is_one_of_the_mesh():
    words = "muon_jax.zero1_shardings(axis='model'): name axes of the mesh: 'data', 'fsdp'."
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        zero1_shardings(leaf((4, 6), P()), MESH, "model")


def test_parameters_are_sharded_by_axes_of_the_mesh():
    other = AbstractMesh((2,), ("data",))
    words = (
        "muon_jax.zero1_shardings: P('fsdp',) does not fit 'mlp/up' of shape (3, 6): the mesh has "
        "no axis 'fsdp'. Its axes are data."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        zero1_shardings({"mlp": {"up": leaf((3, 6), P("fsdp"))}}, other, "data")
