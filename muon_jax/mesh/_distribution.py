"""The argument `distribute`: how devices share the work of an update."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from muon_jax._checks import invalid, named, refused
from muon_jax.mesh._specs import AnyMesh, Axes, spec_of

_WIRE_DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Says how parameters are sharded, or how devices share the orthogonalisation.

    One device orthogonalises each whole matrix, and the matrices are distributed over all devices.
    The default `distribute="auto"` reads the mesh from arrays and types, and on Explicit axes the
    specs. Known specs save half of the collectives; inside a `shard_map` they are required.

    Args:
      mesh: the mesh of the plain `PartitionSpec`s in `specs`; None is the mesh of `jax.set_mesh` or
        of the surrounding `shard_map`.
      specs: how the parameters are sharded: a `PartitionSpec` or `NamedSharding` for all, or a
        prefix tree of them.
      axes: the mesh axes over which matrices are distributed; None is all. Leave out an axis with a
        slow network: devices along it then repeat the work. Axes that shard a matrix always
        communicate.
      wire_dtype: the dtype for communication. `"bfloat16"` halves the bytes, with a relative error
        of 2⁻⁹ in each entry of the momentum and of the update; `"float32"` keeps the dtype of the
        momentum. None is bfloat16 if the orthogonalizer rounds its operands to bfloat16, which is
        the default on TPU and GPU.

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

    @named("Distribution", inside=True)
    def __post_init__(self):
        if not isinstance(self.mesh, Mesh | AbstractMesh | None):
            raise invalid("mesh", self.mesh, "give a jax.sharding.Mesh", TypeError)
        if self.mesh is not None and self.specs is None:
            raise invalid("mesh", self.mesh, "give specs with it, or neither")
        for spec in jax.tree.leaves(self.specs, is_leaf=is_spec):
            if not is_spec(spec):
                remedy = "give a tree of PartitionSpec or NamedSharding"
                raise invalid("specs", spec, remedy, TypeError)
        if self.axes is not None:
            axes = (self.axes,) if isinstance(self.axes, str) else tuple(self.axes)
            if not all(isinstance(axis, str) for axis in axes):
                raise invalid("axes", self.axes, "give the names of mesh axes", TypeError)
            object.__setattr__(self, "axes", axes)
        if self.wire_dtype is not None:
            # float16 would flush small gradients to zero.
            names = [name for name in _WIRE_DTYPES if self.wire_dtype in (name, jnp.dtype(name))]
            if not names:
                remedy = "give jnp.bfloat16, jnp.float32 or None"
                raise invalid("wire_dtype", self.wire_dtype, remedy)
            object.__setattr__(self, "wire_dtype", names[0])

    @classmethod
    @named("Distribution.like", inside=True)
    def like(
        cls, params: Any, *, axes: str | Sequence[str] | None = None, wire_dtype: Any = None
    ) -> "Distribution":
        """Reads mesh and specs from parameters on a mesh.

        Args:
          params: arrays, or `jax.ShapeDtypeStruct`s with shardings. A leaf without a
            `NamedSharding` counts as replicated.
          axes: as in `Distribution`.
          wire_dtype: as in `Distribution`.

        Raises:
          ValueError: the parameters are on no mesh, or on several.

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
                f"the parameters are on {len(meshes) or 'no'} meshes",
                "Put all of them on one mesh with jax.device_put and NamedSharding",
            )
        specs = jax.tree.map(spec_of, params)
        return cls(meshes.pop(), specs, axes, wire_dtype)  # pyright: ignore[reportArgumentType]


Distribute: TypeAlias = Literal["auto", "off"] | Distribution
"""`"auto"` distributes matrices over any mesh, `"off"` leaves placement to XLA."""


def check_distribute(distribute: Any) -> None:
    if not (distribute in ("auto", "off") or isinstance(distribute, Distribution)):
        raise invalid("distribute", distribute, "give 'auto', 'off' or a Distribution")


def is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec | NamedSharding)
