"""`Distribution` checks its arguments at construction; one device needs no layout."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from muon_jax._checks import named
from muon_jax.mesh._distribution import Distribution, check_distribute
from muon_jax.mesh._layout import resolve_layout
from muon_jax.views._matrix_axes import MatrixAxes

MESH = jax.make_mesh((1,), ("data",))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"mesh": 8}, TypeError, "mesh=8): give a jax.sharding.Mesh"),
        (
            {"specs": {"up": P(), "down": "fsdp"}},
            TypeError,
            "specs='fsdp'): give a tree of PartitionSpec or NamedSharding",
        ),
        ({"axes": (1,)}, TypeError, "axes=(1,)): give the names of mesh axes"),
        (
            {"wire_dtype": "float16"},
            ValueError,
            "wire_dtype='float16'): give jnp.bfloat16, jnp.float32 or None",
        ),
        ({"mesh": MESH}, ValueError, f"mesh={MESH!r}): give specs with it, or neither"),
    ],
)
def test_a_distribution_is_checked_where_it_is_made(arguments, kind, words):
    with pytest.raises(kind, match=f"^{re.escape(f'muon_jax.Distribution({words}.')}$"):
        Distribution(**arguments)


def test_what_is_said_in_two_ways_is_the_same():
    assert Distribution(wire_dtype=jnp.bfloat16) == Distribution(wire_dtype="bfloat16")
    assert Distribution(wire_dtype=jnp.bfloat16).wire_dtype == "bfloat16"
    assert Distribution(MESH, P(), axes="data") == Distribution(MESH, P(), axes=["data"])
    assert Distribution(specs={"up": P(), "down": NamedSharding(MESH, P())}).axes is None


@pytest.mark.parametrize("distribute", ["Auto", None, P()])
def test_distribute_is_a_word_or_a_distribution(distribute):
    words = (
        f"muon_jax.scale_by_muon(distribute={distribute!r}): give 'auto', 'off' or a Distribution."
    )
    with named("scale_by_muon"), pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        check_distribute(distribute)


@pytest.mark.parametrize("distribute", ["auto", "off", Distribution()])
def test_words_and_distributions_pass(distribute):
    check_distribute(distribute)


def test_a_distribution_is_read_off_arrays_and_their_shapes():
    sharding = NamedSharding(MESH, P("data"))
    kernel = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)
    params = {"kernel": kernel, "norm": jax.device_put(jnp.ones(4), NamedSharding(MESH, P()))}
    specs = {"kernel": P("data"), "norm": P()}
    assert Distribution.like(params) == Distribution(MESH, specs)
    assert Distribution.like(params, axes="data").axes == ("data",)
    beside = {**params, "scale": jnp.ones(3)}
    assert Distribution.like(beside).specs == {**specs, "scale": P()}


def test_parameters_on_no_mesh_have_no_distribution():
    words = "muon_jax.Distribution.like: the parameters are on no meshes. Put all of them on one"
    with pytest.raises(ValueError, match=re.escape(words)):
        Distribution.like({"kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize("distribute", ["auto", "off", Distribution()])
def test_one_device_needs_no_layout(distribute):
    view = MatrixAxes(0, 1)

    def look(tree):
        assert resolve_layout(tree, [view], distribute, tree) is None
        return tree

    look({"kernel": jnp.ones((2, 3))})
    jax.jit(look)({"kernel": jnp.ones((2, 3))})
    mesh = jax.make_mesh((1,), ("data",))
    jax.shard_map(look, mesh=mesh, in_specs=P(), out_specs=P())({"kernel": jnp.ones((2, 3))})
