"""What a user may say about how the work of an update is shared among devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from muon_jax._checks import invalid, refused
from muon_jax.mesh._specs import AnyMesh, Axes

_WIRE_DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Says how parameters are sharded, or how devices share the orthogonalisation.

    Every matrix is orthogonalised whole, by one device, and each device does its part of the work.
    The default `distribute="auto"` reads mesh and specs off arrays and types. Under `jit` on Auto
    axes it knows the mesh alone; with specs the shards travel in fewer collectives. Inside a
    `shard_map` it needs the specs.

    Args:
      mesh: the mesh that plain `PartitionSpec`s in `specs` name; None is the one of `jax.set_mesh`
        or of the surrounding `shard_map`.
      specs: how the parameters are sharded: a `PartitionSpec` or `NamedSharding` for all, or a
        prefix tree of them.
      axes: the mesh axes along which devices take over work from each other; None is all. Leave
        out an axis with a slow network: devices along it then repeat work instead. Shards
        cross the axes that shard a matrix in any case.
      wire_dtype: the dtype for communication. `"bfloat16"` halves the bytes, at a relative error
        of 2⁻⁹ in each entry of the momentum and of the update; `"float32"` sends the dtype of
        the momentum. None is bfloat16 where the orthogonalizer rounds its operands to it anyway,
        by default on TPU and GPU.

    Raises:
      TypeError: for a mesh, a spec or axes of another type.
      ValueError: for another wire dtype, or a mesh without specs.

    Examples:
      >>> Distribution(wire_dtype=jnp.bfloat16).wire_dtype
      'bfloat16'
    """

    mesh: AnyMesh | None = None
    specs: Any = None
    axes: Axes | None = None
    wire_dtype: Any = None

    def __post_init__(self):
        if self.mesh is not None and not isinstance(self.mesh, Mesh | AbstractMesh):
            raise invalid("Distribution", "mesh", self.mesh, "give a jax.sharding.Mesh", TypeError)
        if self.mesh is not None and self.specs is None:
            raise invalid("Distribution", "mesh", self.mesh, "give specs with it, or neither")
        for spec in jax.tree.leaves(self.specs, is_leaf=is_spec):
            if not isinstance(spec, PartitionSpec | NamedSharding):
                raise invalid(
                    "Distribution",
                    "specs",
                    spec,
                    "give a tree of PartitionSpec or NamedSharding",
                    TypeError,
                )
        if self.axes is not None:
            axes = (self.axes,) if isinstance(self.axes, str) else tuple(self.axes)
            if not all(isinstance(axis, str) for axis in axes):
                raise invalid(
                    "Distribution", "axes", self.axes, "give the names of mesh axes", TypeError
                )
            object.__setattr__(self, "axes", axes)
        if self.wire_dtype is not None:
            # float16 would flush small gradients to zero.
            names = [name for name in _WIRE_DTYPES if self.wire_dtype in (name, jnp.dtype(name))]
            if not names:
                remedy = "give jnp.bfloat16, jnp.float32 or None"
                raise invalid("Distribution", "wire_dtype", self.wire_dtype, remedy)
            object.__setattr__(self, "wire_dtype", names[0])

    @classmethod
    def like(
        cls, params: Any, *, axes: str | Sequence[str] | None = None, wire_dtype: Any = None
    ) -> "Distribution":
        """Reads mesh and specs off parameters on a mesh.

        Args:
          params: arrays, or `jax.ShapeDtypeStruct`s with shardings. A leaf without a
            `NamedSharding` counts as whole on every device.
          axes: as in `Distribution`.
          wire_dtype: as in `Distribution`.

        Raises:
          ValueError: the parameters lie on no mesh, or on several.

        Examples:
          >>> mesh = jax.make_mesh((1,), ("fsdp",))
          >>> sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
          >>> params = {"kernel": jax.ShapeDtypeStruct((8, 4), "float32", sharding=sharding)}
          >>> Distribution.like(params).specs
          {'kernel': P('fsdp',)}
        """
        found = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
        meshes = {each.mesh for each in found if isinstance(each, NamedSharding)}
        if len(meshes) != 1:
            raise refused(
                "Distribution.like",
                f"the parameters lie on {len(meshes) or 'no'} meshes",
                "Put all of them on one mesh with jax.device_put and NamedSharding",
            )
        specs = jax.tree.map(
            lambda leaf: (
                leaf.sharding.spec
                if isinstance(getattr(leaf, "sharding", None), NamedSharding)
                else PartitionSpec()
            ),
            params,
        )
        return cls(meshes.pop(), specs, axes, wire_dtype)  # pyright: ignore[reportArgumentType]


Distribute: TypeAlias = Literal["auto", "off"] | Distribution
"""`"auto"` shares the work on any mesh, `"off"` leaves placement to XLA."""


def check_distribute(call: str, distribute: Any) -> None:
    if not (distribute in ("auto", "off") or isinstance(distribute, Distribution)):
        raise invalid(call, "distribute", distribute, "give 'auto', 'off' or a Distribution")


def is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec | NamedSharding)
