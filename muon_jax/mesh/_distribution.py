"""What a user may say about how the work of an update is shared among devices."""

import dataclasses
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from muon_jax._checks import invalid
from muon_jax.mesh._ownership import Axes
from muon_jax.mesh._specs import AnyMesh


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Tells `distribute=` what it cannot find out, or how to share the work.

    Every matrix is orthogonalised by one device, whole, and each device does its part of the work.
    Shards travel to the owner and back in one collective each way for all matrices together. The
    default `distribute="auto"` finds mesh and specs itself, except inside `shard_map`.

    Args:
      mesh: the mesh that plain `PartitionSpec`s in `specs` speak of; None is the one that
        `jax.set_mesh` or the surrounding `shard_map` set.
      specs: how the parameters are sharded: a `PartitionSpec` or `NamedSharding` for all, or a
        prefix tree of them. Give it inside `shard_map`, and where a step with Auto axes is to
        be exported or found again in the persistent compilation cache.
      axes: the mesh axes along which devices take work over from each other; None is all. Leave
        out an axis with a slow network: devices along it then repeat work instead. Shards
        cross the axes that shard a matrix in any case.
      wire_dtype: `jnp.bfloat16` halves what travels, at a relative error of 2⁻⁹ in each entry of
        the momentum and of the update. None sends the dtype of the momentum.

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
            if self.wire_dtype not in ("bfloat16", jnp.bfloat16):
                # float16 would flush small gradients to zero, and float32 saves nothing.
                raise invalid(
                    "Distribution", "wire_dtype", self.wire_dtype, "give jnp.bfloat16 or None"
                )
            object.__setattr__(self, "wire_dtype", "bfloat16")


Distribute: TypeAlias = Literal["auto", "off"] | Distribution
"""`"auto"` shares the work on any mesh, `"off"` leaves placement to XLA."""


def check_distribute(call: str, distribute: Any) -> None:
    if not (distribute in ("auto", "off") or isinstance(distribute, Distribution)):
        raise invalid(call, "distribute", distribute, "give 'auto', 'off' or a Distribution")


def is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec | NamedSharding)
