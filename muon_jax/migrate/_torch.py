"""Converts momentum buffers between PyTorch and JAX.

PyTorch stores a weight as (outputs, inputs) and numbers parameters in the order of its groups.
Buffers are NumPy arrays here; PyTorch is never imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax.transforms._muon import MuonState
from muon_jax.transforms._orthogonalize import AxesLike, resolve_views
from muon_jax.trees._paths import named_leaves
from muon_jax.views._matrix_axes import MatrixAxes

Weights: TypeAlias = Mapping[str, int | str | Sequence[int | str]]
"""Numbers or names of PyTorch parameters by path; for a stack, one for every matrix."""

Buffer: TypeAlias = Float[np.ndarray, "outputs inputs"]

_BUFFER = "momentum_buffer"


class Matrix(NamedTuple):
    """The momentum of one parameter that Muon trains, and its view as a batch of matrices."""

    average: Float[Array, "..."]
    view: MatrixAxes


def matrices_of(state: Any, axes: AxesLike) -> dict[str, Matrix]:
    """Returns every parameter that Muon trains, by path.

    Raises:
      ValueError: `axes` has no view for one of them.
    """
    found = {}
    for part in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, MuonState)):
        if isinstance(part, MuonState):
            views = resolve_views(part.mu, axes)
            for (path, leaf), view in zip(named_leaves(part.mu), views, strict=True):
                if view is None:
                    raise _checks.refused(
                        f"axes has no view of '{path}', which Muon trains",
                        "Give the views that it trains by, such as muon_jax.matrix_axes(params)",
                    )
                # PyTorch stores a fused weight as one array, as JAX does.
                found[path] = Matrix(leaf, MatrixAxes(view.rows, view.cols))
    return found


def numbers_of(
    state_dict: Any, weights: Weights, matrices: Mapping[str, Matrix]
) -> dict[str, list[int]]:
    """Returns by path the numbers of the parameters in the state_dict.

    Raises:
      ValueError: this is not a state_dict, a path is missing, or a parameter is unknown.
    """
    if not (isinstance(state_dict, Mapping) and {"state", "param_groups"} <= set(state_dict)):
        remedy = "Give what `state_dict()` of the PyTorch optimizer returned"
        raise _checks.refused("state_dict lacks 'state' or 'param_groups'", remedy)
    if differing := sorted(set(weights) ^ set(matrices)):
        raise _checks.refused(
            f"weights and the matrices of state differ in {_checks.listed(map(repr, differing))}",
            "Name the PyTorch parameter of every matrix that Muon trains, and of no other",
        )
    groups = state_dict["param_groups"]
    known = {number: number for group in groups for number in group["params"]}
    for group in groups:
        known |= dict(zip(group.get("param_names", ()), group["params"], strict=False))
    found, owners = {}, {}
    for path, given in weights.items():
        keys = [given] if isinstance(given, SupportsIndex | str) else given
        if unknown := [key for key in keys if key not in known]:
            raise _checks.refused(
                f"'{path}' names parameter {unknown[0]!r}, which state_dict does not have",
                f"Choose from {_checks.listed(map(repr, known))}; state_dict has names if the "
                "optimizer was made from `named_parameters()`",
            )
        found[path] = [known[key] for key in keys]
        for number in found[path]:
            if (owner := owners.setdefault(number, path)) != path:
                raise _checks.refused(
                    f"'{owner}' and '{path}' both name parameter {number!r}",
                    "Name a different parameter for each",
                )
    return found


def buffer_of(state_dict: Any, number: int, path: str) -> Buffer:
    """Returns one buffer.

    Raises:
      ValueError: there is none.
      TypeError: NumPy cannot read it.
    """
    entry = state_dict["state"].get(number, {})
    if _BUFFER not in entry:
        raise _checks.refused(
            f"parameter {number} of state_dict, for '{path}', has no {_BUFFER!r}",
            "Take the state_dict after a step, of the optimizer that trains this matrix",
        )
    try:
        return np.asarray(entry[_BUFFER], np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _checks.refused(
            f"NumPy cannot read the {_BUFFER!r} of parameter {number}, for '{path}': {error}",
            "Replace it by `buffer.float().cpu().numpy()`",
            TypeError,
        ) from None


def to_leaf(buffers: Sequence[Buffer], matrix: Matrix, path: str) -> Float[Array, "..."]:
    """Converts the buffers of one parameter to the layout of JAX.

    Raises:
      ValueError: their number or a shape is wrong.
    """
    shape = matrix.average.shape
    ((batch, rows, cols),) = matrix.view.matrix_shapes(shape)
    found = [buffer.shape for buffer in buffers]
    if found != [(cols, rows)] * batch:
        raise _checks.refused(
            f"'{path}' of shape {shape}, by {matrix.view!r}, is {batch} of shape {(cols, rows)} "
            f"in PyTorch, but the buffers have shapes {_checks.listed(map(str, found))}",
            "Give the right parameters in weights, and the right view in axes",
        )
    return matrix.view.from_matrices([jnp.stack([buffer.T for buffer in buffers])], shape)


def from_leaf(matrix: Matrix, count: int, path: str) -> list[Buffer]:
    """Converts a momentum to buffers in the layout of PyTorch, as copies.

    Raises:
      ValueError: their number differs from that of the PyTorch parameters.
    """
    (matrices,) = matrix.view.to_matrices(jnp.asarray(matrix.average, jnp.float32))
    if len(matrices) != count:
        raise _checks.refused(
            f"'{path}', by {matrix.view!r}, is {len(matrices)} matrices, but {count} parameters "
            "of PyTorch",
            "Name one parameter for every matrix in weights, or another view in axes",
        )
    return [np.array(each.T, order="C") for each in matrices]


def with_buffers(state_dict: Any, buffers: Mapping[int, Buffer]) -> dict[str, Any]:
    """Returns a copy of the state_dict with these buffers."""
    entries = dict(state_dict["state"])
    for number, buffer in buffers.items():
        entries[number] = {**entries.get(number, {}), _BUFFER: buffer}
    return {**state_dict, "state": entries}
