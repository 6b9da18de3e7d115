"""Transformations that are built for each tree, because they depend on its routes."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from muon_jax._checks import invalid, refused
from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._record import RecordedLeaf, record
from muon_jax.transforms._same_leaves import check_gradients, check_same_leaves, params_beside
from muon_jax.trees._paths import chosen_by_leaf, is_placeholder

_TREES_KEPT = 8


class Report(NamedTuple):
    """What an optimizer does with a tree.

    Attributes:
      leaves: for `explain`.
      notices: the warnings of `init`.
    """

    leaves: Sequence[RecordedLeaf]
    notices: Sequence[str] = ()


def built_per_tree(
    build: Callable[[Any], optax.GradientTransformationExtraArgs],
    report: Callable[[Any], Report] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation that depends on the whole tree.

    Args:
      build: from parameters, or updates of their structure, to the transformation for them. It runs
        at every update, because the transformation may hold traced hyperparameters.
      report: from parameters to the report of `init`.
    """

    def built(tree: Any) -> optax.GradientTransformationExtraArgs:
        return build(tree)

    def init(params: optax.Params) -> optax.OptState:
        if report is not None and not is_placeholder(params):
            leaves, notices = report(params)
            if not record(leaves):
                for notice in notices:
                    warnings.warn(notice, stacklevel=2)
        return on_mesh_of(params, built(params).init(params))

    expected = once_per_structure(lambda tree: jax.eval_shape(built(tree).init, tree))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        params = params_beside(updates, params)
        check_gradients(updates, state)
        updates = jax.tree.map(jnp.asarray, updates)  # NumPy's float64 becomes JAX's float
        check_same_leaves(state, expected(updates))
        return built(updates).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def once_per_structure(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Caches a function of a tree that depends only on structure, shapes and dtypes.

    Without the cache an update outside of `jit` would route and trace at every step.
    """
    results: dict[Any, Any] = {}

    def cached(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        key = (structure, *((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves))
        try:
            known = key in results
        except TypeError:  # the structure has unhashable metadata
            return function(tree)
        if not known:
            if len(results) == _TREES_KEPT:
                results.pop(next(iter(results)))
            results[key] = function(tree)
        return results[key]

    return cached


def check_mask(argument: str, mask: Any) -> None:
    """Raises TypeError for the result of a mask function that was called with a step count.

    `optax.inject_hyperparams` does so around a user's own factory.
    """
    if mask is False or isinstance(mask, np.ndarray | jax.Array):
        remedy = "give weight_decay=0.0 for no decay, or a tree of booleans, or a function to one; "
        remedy += f'optax.inject_hyperparams may need static_args=("{argument}",)'
        raise invalid(argument, mask, remedy, TypeError)


def mask_for(argument: str, tree: Any, mask: Any) -> Callable[[Any], Any] | None:
    """Evaluates a mask on the whole tree, because Optax would pass it only a part.

    Returns a function, because Optax calls masks that are callable, such as trees of a model's
    class.
    """
    if mask is None:
        return None
    if is_placeholder(tree):
        return lambda _: tree
    kept = mask_by_leaf(argument, tree, mask)
    chosen = jax.tree.structure(tree).unflatten(kept)
    return lambda _: chosen


def mask_by_leaf(argument: str, tree: Any, mask: Any) -> list[bool]:
    """Lists the value of a mask for each leaf of a tree."""
    remedy = "Give a tree of booleans, or a function from the parameters to one"
    kept = chosen_by_leaf(argument, mask, tree, remedy=remedy)
    for each in kept:
        # A traced array, such as a mask computed from a step count, has no value yet.
        if isinstance(each, Tracer) or np.asarray(each).dtype != bool or np.ndim(each):
            raise refused(f"{argument} holds {each!r}", remedy, TypeError)
    return [bool(each) for each in kept]
