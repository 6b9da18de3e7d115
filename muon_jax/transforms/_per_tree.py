"""Transformations that are built anew for the tree they are given, whose routes they need."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._same_leaves import check_same_leaves
from muon_jax.trees._paths import chosen_by_leaf


def built_per_tree(
    call: str, build: Callable[[Any], optax.GradientTransformationExtraArgs]
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation that reads its structure off the whole tree, and keeps none of it.

    Args:
      call: the call that is named where a state does not fit the tree.
      build: from parameters, or updates of their structure, to the transformation for them.
    """

    def init(params: optax.Params) -> optax.OptState:
        return on_mesh_of(params, build(params).init(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        transform = build(updates)
        check_same_leaves(state, jax.eval_shape(transform.init, updates), call=call)
        return transform.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def mask_for(call: str, argument: str, tree: Any, mask: Any) -> Callable[[Any], Any] | None:
    """Reads a mask off the whole tree, of which Optax would show it a part.

    The answer is a function: Optax calls what can be called, and a mask of a model's class can.
    """
    if mask is None:
        return None
    kept = mask_by_leaf(call, argument, tree, mask)
    chosen = jax.tree.structure(tree).unflatten(kept)
    return lambda _: chosen


def mask_by_leaf(call: str, argument: str, tree: Any, mask: Any) -> list[bool]:
    """Lists whether a mask keeps each leaf of a tree."""
    remedy = "Give a tree of booleans, or a function from the parameters to one"
    return chosen_by_leaf(call, argument, mask, tree, remedy=remedy)
