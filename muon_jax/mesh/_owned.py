"""Applies a function to stacks of whole matrices, each on the device that owns it.

The state of the function stays on the owners between calls. Only inputs and results are sent.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax.mesh._constraints import release_one_axis, shard_one_axis, share_for
from muon_jax.mesh._distribution import Distribute
from muon_jax.mesh._layout import resolve_layout
from muon_jax.mesh._specs import (
    AnyMesh,
    Axes,
    group_size,
    known_sharding,
    mesh_of_type,
    with_explicit_as_auto,
)
from muon_jax.mesh._state import constrained
from muon_jax.views._matrix_axes import MatrixAxes

Work: TypeAlias = Callable[[Any, list[Any], list[Any]], tuple[list[Array], list[Any]]]
"""A function of `common`, `moving` and `staying`, as `on_owners` describes them. It returns one
result for every stack, and the new `staying`."""


@dataclasses.dataclass(frozen=True)
class Owners:
    """The devices over which stacks of matrices are distributed.

    Attributes:
      mesh: their mesh.
      axes: the mesh axes that number them, major first.
    """

    mesh: AnyMesh
    axes: Axes

    def home(self, batch: Sequence[int]) -> tuple[int, int]:
        """Returns the batch axis that is distributed over the devices, and its padded size.

        It prefers a size that is a multiple of the devices: a batch axis of the leaves before the
        axis of the stack. Otherwise it pads the longest axis.
        """
        count = group_size(self.axes, self.mesh.shape)
        order = [*range(1, len(batch)), 0]
        longest = max(order, key=lambda axis: batch[axis])
        axis = next((axis for axis in order if batch[axis] % count == 0), longest)
        return axis, math.ceil(batch[axis] / count) * count

    def spec(self, batch: Sequence[int]) -> PartitionSpec:
        """Returns the sharding of a stack with these batch axes on its owners."""
        return PartitionSpec(*(None,) * self.home(batch)[0], self.share(batch) or None)

    def share(self, batch: Sequence[int]) -> Axes:
        """Returns the mesh axes in the order in which they shard a stack with these batch axes."""
        return share_for(self.axes, len(batch) > 1)

    def stored(self, shape: Sequence[int], ndim: int) -> PartitionSpec:
        """Returns the sharding of an array of the state, whose first `ndim` axes are batch axes.

        If no batch axis is a multiple of the devices, another axis that is one is sharded.
        """
        axis, padded = self.home(shape[:ndim])
        if shape[axis] == padded:
            return self.spec(shape[:ndim])
        count = group_size(self.axes, self.mesh.shape)
        axis = next((i for i in range(ndim, len(shape)) if shape[i] % count == 0), None)
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, self.axes)


def owners_of(
    tree: Any, views: Sequence[MatrixAxes | None], distribute: Distribute, like: Any
) -> Owners | None:
    """Returns the owners of the matrices of a tree; None on one device, or if XLA places them."""
    layout = resolve_layout(tree, views, distribute, like)
    return None if layout is None else Owners(layout.mesh, layout.share)


def placed(
    stacks: Sequence[Any], ndims: Sequence[int], owners: Owners | None, like: Sequence[Array]
) -> list[Any]:
    """Places the arrays of fresh stacks where `on_owners` keeps them.

    Args:
      stacks: a tree of arrays for every stack.
      ndims: how many axes of the arrays of each stack are batch axes.
      owners: from `owners_of`.
      like: arrays on the mesh of the owners.
    """
    if owners is None:
        return list(stacks)
    traced = any(isinstance(array, Tracer) for array in like)
    known = None if traced else next(filter(None, map(known_sharding, like)), None)
    mesh = known.mesh if known else owners.mesh

    def put(array: Array, ndim: int) -> Array:
        sharding = NamedSharding(mesh, owners.stored(array.shape, ndim))
        return constrained(array, sharding) if traced else jax.device_put(array, sharding)

    return [
        jax.tree.map(lambda array, ndim=ndim: put(array, ndim), stack)
        for stack, ndim in zip(stacks, ndims, strict=True)
    ]


def on_owners(
    work: Work,
    common: Any,
    moving: list[Any],
    staying: list[Any],
    ndims: Sequence[int],
    owners: Owners | None,
) -> tuple[list[Array], list[Any]]:
    """Calls `work` on every device with the matrices that it owns.

    Args:
      work: calculates with stacks of any batch sizes, each matrix by itself.
      common: arrays that all devices get.
      moving: for every stack a tree of arrays, batch axes first. They are sent to the owners.
      staying: for every stack its state, batch axes first: from `placed`, or from the last call.
      ndims: how many axes of the arrays of each stack are batch axes.
      owners: from `owners_of`.

    Returns:
      The results of `work`.
    """
    if owners is None:
        return work(common, moving, staying)
    arrays, structure = jax.tree.flatten((common, moving, staying))

    def run(*arrays: Array) -> list[Array]:
        mesh = next(filter(None, map(mesh_of_type, arrays)), owners.mesh.abstract_mesh)
        common, moving, staying = structure.unflatten(arrays)
        return jax.tree.leaves(
            _run(work, common, moving, staying, ndims, Owners(mesh, owners.axes))
        )

    results = [jax.tree.leaves(each)[0] for each in moving]
    call = with_explicit_as_auto(run, [*results, *jax.tree.leaves(staying)])
    traced = any(isinstance(array, Tracer) for array in arrays)
    new = (call if traced else jax.jit(call))(*arrays)
    return new[: len(results)], jax.tree.structure(staying).unflatten(new[len(results) :])


def _run(
    work: Work,
    common: Any,
    moving: list[Any],
    staying: list[Any],
    ndims: Sequence[int],
    owners: Owners,
) -> tuple[list[Array], list[Any]]:
    mesh = owners.mesh.abstract_mesh
    batches = [
        jax.tree.leaves(each)[0].shape[:ndim] for each, ndim in zip(moving, ndims, strict=True)
    ]
    specs = [owners.spec(batch) for batch in batches]

    def padded(array: Array, batch: Sequence[int]) -> Array:
        axis, size = owners.home(batch)
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, size - batch[axis])
        return jnp.pad(array, widths) if size > batch[axis] else array

    def arriving(array: Array, batch: Sequence[int]) -> Array:
        axis, _ = owners.home(batch)
        return shard_one_axis(padded(array, batch), mesh, axis, owners.share(batch))

    def leaving(array: Array, batch: Sequence[int]) -> Array:
        axis, _ = owners.home(batch)
        released = release_one_axis(array, mesh, axis, owners.share(batch))
        return released[tuple(map(slice, batch))]

    def stored(array: Array, batch: Sequence[int]) -> Array:
        array = array[tuple(map(slice, batch))]
        sharding = NamedSharding(mesh, owners.stored(array.shape, len(batch)))
        return lax.with_sharding_constraint(array, sharding)

    def each(function: Callable[[Array, Sequence[int]], Array], trees: list[Any]) -> list[Any]:
        return [
            jax.tree.map(lambda array, batch=batch: function(array, batch), tree)
            for tree, batch in zip(trees, batches, strict=True)
        ]

    results, kept = jax.shard_map(
        work,
        mesh=mesh,
        in_specs=(PartitionSpec(), specs, specs),
        out_specs=(specs, specs),
        check_vma=False,
    )(common, each(arriving, moving), each(padded, staying))
    return each(leaving, results), each(stored, kept)
