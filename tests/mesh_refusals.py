"""What is wrong, and the remedy, in the refusals of `mesh_surroundings.py`, by case."""

SHARDS = (
    "layer_0/down, layer_0/out, layer_0/qkv, layer_0/up inside shard_map may be shards, which "
    "nothing tells",
    "Pass distribute=Distribution(specs=...) with the PartitionSpecs of the parameters",
)
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
        "vmap maps over an axis that is sharded explicitly along 'model'",
        "Make that mesh axis Auto, or pass distribute='off'",
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
        "P(UNCONSTRAINED,) does not fit 'mlp/up' of shape (64, 100): it leaves an axis open",
        "Name mesh axes or None for each",
    ),
    "refused_specs no prefix": (
        "Distribution(specs=...) is no prefix of the parameters: it has mlp/other, which they have "
        "not, and nothing for mlp/up",
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
        "'mlp/up' lies as P(), and its spec says P('data',)",
        "Give the spec that it has, or leave specs out to have it found",
    ),
    "refused_two_meshes": (
        "a, b lie on 2 different meshes",
        "Put all parameters on one mesh, or pass distribute='off'",
    ),
    "refused_meshes_of_specs": (
        "Distribution(specs=...) speaks of 2 meshes",
        "Give its mesh as Distribution(mesh, specs), or one by jax.set_mesh",
    ),
    "refused_axes": (
        "Distribution(axes=('model',)) names 'model', which the mesh does not have",
        "Its axes are 'data'",
    ),
    "refused_no_mesh": (
        "Distribution(specs=...) speaks of no meshes",
        "Give its mesh as Distribution(mesh, specs), or one by jax.set_mesh",
    ),
}
