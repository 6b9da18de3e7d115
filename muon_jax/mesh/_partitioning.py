"""Shares the work under jit with Auto axes, where only the compiler knows the shardings.

A `custom_partitioning` operation stands in the traced program for all matrices together. While the
compiler partitions the program it asks for the body and tells the shardings, so that the plan is
made then. Such an operation has no derivative and cannot be exported, and the persistent cache of
compiled programs does not find it again in another process.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from muon_jax._checks import refused
from muon_jax._types import Solve
from muon_jax.mesh._exchange import exchange_shards
from muon_jax.mesh._layout import CompilerLayout, shared_axes
from muon_jax.mesh._ownership import Cost, MeshShape, ShardedLeaf, Spec, group_size
from muon_jax.mesh._packing import solve_leaves
from muon_jax.mesh._specs import partition_spec, spec_axes, with_explicit_as_auto
from muon_jax.views._matrix_axes import MatrixAxes


def solve_where_compiled(
    arrays: Sequence[Array],
    views: Sequence[MatrixAxes],
    layout: CompilerLayout,
    solve: Solve,
    cost: Cost,
) -> list[Array]:
    """Orthogonalises leaves of whose shardings nothing is known while tracing."""
    like, layout = layout.like or (), dataclasses.replace(layout, like=None)

    @custom_vmap
    def run(arrays: list[Array], like: list[Array]) -> list[Array]:
        return _solve(arrays, like, views, layout, solve, cost)

    @run.def_vmap
    def run_stacked(size, batched, arrays, like):
        """An axis that vmap adds is one more batch axis."""
        del size
        stacked, stacked_like = batched
        like = tuple(like) if stacked == stacked_like else None
        results = solve_where_compiled(
            arrays,
            [_stacked(view) if more else view for view, more in zip(views, stacked, strict=True)],
            dataclasses.replace(layout, like=like),
            solve,
            cost,
        )
        return results, stacked

    return run(list(arrays), list(like))


def _solve(
    arrays: list[Array],
    like: list[Array],
    views: Sequence[MatrixAxes],
    layout: CompilerLayout,
    solve: Solve,
    cost: Cost,
) -> list[Array]:
    count = len(arrays)
    followed = slice(count, 2 * count) if like else slice(count)

    def alone(*leaves: Array) -> list[Array]:
        return solve_leaves(leaves, views, solve)

    # The operation refuses functions that hold arrays, as an orthogonalizer may. What one device
    # does alone has no sharding, so none is in the types that it is traced with.
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    traced = jax.make_jaxpr(alone)(*shapes)

    # In a compiled program JAX calls the operation by an address, which a later process may give to
    # another one: with nothing else to tell them apart, a persistent cache would hand out the wrong
    # program. So the last operand, which nothing reads, is a digest of all that is computed.
    digest = _digest(str(traced.jaxpr), views, layout.share, layout.wire_dtype)
    others = [*like, *traced.consts, digest]

    @custom_partitioning
    def operation(*operands: Array) -> tuple[Array, ...]:
        """What one device would do alone."""
        constants = operands[count + len(like) : -1]
        return tuple(eval_jaxpr(traced.jaxpr, constants, *operands[:count]))

    def partition(mesh: Mesh, operands, results):
        if mesh.empty:
            raise refused(
                layout.call,
                "no sharding in this program names a mesh",
                "Put the parameters on a mesh with NamedSharding, or pass distribute='off'",
            )
        leaves = [
            ShardedLeaf(
                operand.shape,
                operand.dtype.name,
                view,
                _even(operand.sharding.spec, operand.shape, mesh.shape),
                _even(result.sharding.spec, result.shape, mesh.shape),
            ).settled()
            for operand, view, result in zip(operands[:count], views, results, strict=True)
        ]

        def body(*shards: Array) -> tuple[Array, ...]:
            done = exchange_shards(
                shards[:count],
                leaves,
                mesh.shape,
                share=shared_axes(layout.call, layout.share, mesh),
                solve=solve,
                cost=cost,
                wire_dtype=layout.wire_dtype,
            )
            return tuple(done)

        held = [NamedSharding(mesh, partition_spec(leaf.held)) for leaf in leaves]
        wanted = [NamedSharding(mesh, partition_spec(leaf.wanted)) for leaf in leaves]
        kept = [operand.sharding for operand in operands[count:]]
        return mesh, body, tuple(wanted), (*held, *kept)

    def infer(mesh: Mesh, operands, results):
        """For the partitioner before Shardy, which aborts the process where this is missing."""
        del mesh, results
        return tuple(operand.sharding for operand in operands[followed])

    ranks = [jnp.ndim(operand) for operand in [*arrays, *others]]
    operation.def_partition(
        partition, infer_sharding_from_operands=infer, sharding_rule=_rule(ranks, followed)
    )

    def run(arrays: list[Array], like: list[Array]) -> list[Array]:
        return list(operation(*arrays, *like, *traced.consts, digest))

    # On a mixed mesh: what the types say of a result must hold for it again.
    return with_explicit_as_auto(run, like or arrays)(arrays, like)


def _digest(*described: Any) -> np.uint32:
    """Names what is described, in every process alike."""
    return np.frombuffer(hashlib.sha256(repr(described).encode()).digest(), np.uint32)[0]


def _stacked(view: MatrixAxes) -> MatrixAxes:
    """The view of a leaf that has one more axis, in front."""
    rows, cols = (
        tuple(axis if axis < 0 else axis + 1 for axis in axes) for axes in (view.rows, view.cols)
    )
    return MatrixAxes(rows, cols, view.split)


def _rule(ranks: Sequence[int], followed: slice) -> str:
    """Ties the sharding of every result to that of one operand, axis by axis, for Shardy.

    The results follow what is to be orthogonalised or, where that may be sharded in another way,
    the parameters.
    """
    operands = [
        " ".join(f"a{place}x{axis}" for axis in range(rank)) for place, rank in enumerate(ranks)
    ]
    return f"{', '.join(operands)} -> {', '.join(operands[followed])}"


def _even(spec: PartitionSpec, shape: Sequence[int], mesh: MeshShape) -> Spec:
    """Keeps of a sharding that the compiler chose what divides the axes of the leaf evenly."""
    kept = []
    for size, axes in zip(shape, spec_axes(spec, len(shape)), strict=True):
        wide = tuple(axis for axis in axes if mesh[axis] > 1)
        while size % group_size(wide, mesh):
            wide = wide[:-1]
        kept.append(wide)
    return tuple(kept)
