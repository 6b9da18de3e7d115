"""Cases: wrong input, and the error that it raises."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from muon_jax import Distribution
from tests.mesh_setup import case, make_mesh, on, orthogonalize, random_leaves
from tests.mesh_surroundings import inside, placed_vmap

MAY_BE_SHARDS = (
    "inside shard_map or pmap may be shards of a parameter, and JAX does not know their shardings"
)
REMEDY = (
    "Pass distribute=Distribution(specs=...) with the PartitionSpecs of the parameters, which is "
    "Distribution(specs=P()) for replicated ones, as those of pmap are; or distribute='off' to "
    "repeat the work on every device"
)
SHARDS = (f"layer_0/down, layer_0/out, layer_0/qkv, layer_0/up {MAY_BE_SHARDS}", REMEDY)
REFUSED = {
    "refused_without_specs_inside True": SHARDS,
    "refused_without_specs_inside False": SHARDS,
    "refused_varying_otherwise": (
        "'layer_0/down' varies over 'fsdp' inside shard_map, and its spec P() shards it over no "
        "axis",
        "Make both agree: average a gradient over the axes that do not shard the parameter",
    ),
    "refused_unknown_axis_inside": (
        "P('model',) does not fit 'layer_0/down' of shape (16, 32): the mesh has no axis 'model'",
        "Its axes are fsdp",
    ),
    "refused_vmap_over_explicit_axis": (
        "vmap maps over an axis that is sharded explicitly along one of the mesh axes 'model', "
        "'fsdp'",
        "Make that mesh axis Auto, or pass distribute='off'",
    ),
    "refused_axes_left_open_inside": (
        f"up {MAY_BE_SHARDS}",
        REMEDY,
    ),
    "refused_specs does not divide": (
        "P(None, 'data') does not fit 'mlp/up' of shape (64, 100): axis 1 does not divide evenly "
        "over data=8",
        "Pad the leaf to a multiple, or leave that axis unsharded in its spec",
    ),
    "refused_specs too long": (
        "P(None, None, 'data') does not fit 'mlp/up' of shape (64, 100): it has only 2 axes",
        "Give one entry per axis",
    ),
    "refused_specs unknown axis": (
        "P('model',) does not fit 'mlp/up' of shape (64, 100): the mesh has no axis 'model'",
        "Its axes are data",
    ),
    "refused_specs named twice": (
        "P('data', 'data') does not fit 'mlp/up' of shape (64, 100): it names 'data' twice",
        "Name every mesh axis once",
    ),
    "refused_specs open": (
        "P(UNCONSTRAINED,) does not fit 'mlp/up' of shape (64, 100): it has UNCONSTRAINED",
        "Name mesh axes or None for each axis",
    ),
    "refused_specs no prefix": (
        "Distribution(specs=...) is no prefix of the parameters: it has mlp/other, which the "
        "parameters lack, and nothing for mlp/up",
        "Give one spec for all, or a tree with the structure of the parameters",
    ),
    "refused_specs nothing": (
        "Distribution(specs=...) is no prefix of the parameters: it has nothing for mlp/up",
        "Give one spec for all, or a tree with the structure of the parameters",
    ),
    "refused_specs other types": (
        "Distribution(specs=...) is no prefix of the parameters: its nodes are of other types",
        "Give one spec for all, or a tree with the structure of the parameters",
    ),
    "refused_specs lies otherwise": (
        "'mlp/up' is sharded as P(), and its given spec is P('data',)",
        "Give its actual spec, or leave specs out",
    ),
    "refused_two_meshes": (
        "a, b are on 2 different meshes",
        "Put all parameters on one mesh, or pass distribute='off'",
    ),
    "refused_meshes_of_specs": (
        "Distribution(specs=...) names 2 meshes",
        "Give its mesh as Distribution(mesh, specs), or one by jax.set_mesh",
    ),
    "refused_axes": (
        "Distribution(axes=('model',)) names 'model', which the mesh does not have",
        "Its axes are 'data'",
    ),
    "refused_no_mesh": (
        "Distribution(specs=...) names no meshes",
        "Give its mesh as Distribution(mesh, specs), or one by jax.set_mesh",
    ),
}


@case(True, False)
def refused_without_specs_inside(check: bool) -> None:
    inside("fsdp", "auto", check_vma=check)


@case()
def refused_varying_otherwise() -> None:
    inside("fsdp", Distribution(specs=P()))


@case()
def refused_unknown_axis_inside() -> None:
    inside("fsdp", Distribution(specs=P("model")))


@case()
def refused_vmap_over_explicit_axis() -> None:
    placed_vmap(make_mesh({"model": 2, "fsdp": 4}, "Explicit"))


@case()
def refused_axes_left_open_inside() -> None:
    mesh = make_mesh({"data": 2, "tensor": 4})
    leaves = on(mesh, random_leaves({"up": (32, 64)}), {"up": P(None, "tensor")})
    update = jax.shard_map(
        orthogonalize, mesh=mesh, in_specs=(P(),), out_specs=P(), axis_names={"data"}
    )
    jax.jit(update)(leaves)


WRONG_SPECS = {
    "does not divide": P(None, "data"),
    "too long": P(None, None, "data"),
    "unknown axis": P("model"),
    "named twice": P("data", "data"),
    "open": P(P.UNCONSTRAINED),
    "no prefix": {"mlp": {"other": P("data")}},
    "nothing": {"mlp": {}},
    "other types": {"mlp": collections.OrderedDict(up=P("data"))},
    "lies otherwise": P("data"),
}


@case(*WRONG_SPECS)
def refused_specs(which: str) -> None:
    mesh = make_mesh({"data": 8})
    tree = {"mlp": {"up": jax.device_put(np.ones((64, 100)), NamedSharding(mesh, P()))}}
    wish = Distribution(mesh, WRONG_SPECS[which])
    orthogonalize(tree, wish) if which == "lies otherwise" else jax.jit(
        lambda tree: orthogonalize(tree, wish)
    )(tree)


@case()
def refused_two_meshes() -> None:
    mesh, other = make_mesh({"data": 8}), make_mesh({"data": 4, "model": 2})
    orthogonalize(
        on(mesh, {"a": np.ones((8, 8))}, {"a": P()}) | on(other, {"b": np.ones((8, 8))}, {"b": P()})
    )


@case()
def refused_meshes_of_specs() -> None:
    mesh, other = make_mesh({"data": 8}), make_mesh({"data": 4, "model": 2})
    wish = Distribution(mesh, NamedSharding(other, P("data")))
    jax.jit(lambda tree: orthogonalize(tree, wish))({"a": jnp.ones((8, 8))})


@case()
def refused_axes() -> None:
    mesh = make_mesh({"data": 8})
    orthogonalize(on(mesh, {"a": np.ones((8, 8))}, {"a": P()}), Distribution(axes="model"))


@case()
def refused_no_mesh() -> None:
    orthogonalize({"a": jnp.ones((8, 8))}, Distribution(specs=P()))
