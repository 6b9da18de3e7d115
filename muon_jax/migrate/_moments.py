"""Reads and writes the moments in optimizer states, by parameter path.

Chains, masks and partitions may wrap a state to any depth. The moments of three states are
converted: `MuonState`, the state of optax.contrib.muon, and Adam's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax.transforms._muon import MuonState
from muon_jax.trees._paths import map_named, named_leaves

_STATES = (MuonState, optax.contrib.MuonState, optax.ScaleByAdamState)
_COUNT = jax.tree_util.GetAttrKey("count")


class MuonMoment(NamedTuple):
    """Muon's average of the gradients of one parameter, without bias correction."""

    steps: int
    average: Float[Array, "..."]

    def __str__(self) -> str:
        return f"Muon's momentum of shape {jnp.shape(self.average)}"


class AdamMoments(NamedTuple):
    """Adam's averages for one parameter, without bias correction."""

    steps: int
    first: Float[Array, "..."]
    second: Float[Array, "..."]

    def __str__(self) -> str:
        return f"Adam's moments of shape {jnp.shape(self.first)}"


Moments: TypeAlias = Mapping[str, MuonMoment | AdamMoments]
"""The moments and the number of steps of each parameter, by path."""


def read(argument: str, state: Any) -> Moments:
    """Returns the moments of a state.

    Raises:
      ValueError: there are none; names `argument`.
    """
    found: dict[str, MuonMoment | AdamMoments] = {}
    for part in jax.tree.leaves(state, is_leaf=_holds_moments):
        if _holds_moments(part):
            found |= _moments_of(part)
    if not found:
        raise _checks.refused(
            f"{argument} holds no moments of Muon or Adam",
            "Give the state that `init` or `update` of the optimizer returned",
        )
    return found


def carry(moments: Moments, state: Any, names: tuple[str, str], remedy: str) -> Any:
    """Returns the state with these moments, after checking that it has the same paths and shapes.

    Args:
      moments: the moments of the old state.
      state: the fresh state.
      names: the arguments of the old and the fresh state, for messages.
      remedy: for messages.

    Raises:
      ValueError: lists the paths that differ, with the moments in both states.
    """
    source, target = names
    expected = read(target, state)

    def shown(side: Moments, path: str) -> str:
        return str(side[path]) if path in side else "no moments"

    differing = [
        f"'{path}' has {shown(moments, path)} in {source} and {shown(expected, path)} in {target}"
        for path in sorted({*moments, *expected})
        if shown(moments, path) != shown(expected, path)
    ]
    if differing:
        raise _checks.refused(_checks.listed(differing, 4), remedy)
    return put(moments, state)


def put(moments: Moments, state: Any) -> Any:
    """Returns the state with these moments and their number of steps.

    Other parts, dtypes and shardings stay unchanged.
    """
    steps = max(each.steps for each in moments.values())

    def placed(path: Any, part: Any) -> Any:
        if _holds_moments(part):
            return _filled(part, moments, steps)
        # Schedules continue from the number of steps of the moments.
        return _like(steps, part) if path and path[-1] == _COUNT else part

    def stands_alone(node: Any) -> bool:
        return _holds_moments(node) or _holds_averages(node)

    return jax.tree_util.tree_map_with_path(placed, state, is_leaf=stands_alone)


def _holds_moments(node: Any) -> bool:
    return isinstance(node, _STATES)


def _holds_averages(node: Any) -> bool:
    """Returns whether a node has other averages, whose count for bias correction must stay 0."""
    fields = node._asdict() if hasattr(node, "_asdict") else {}
    if "count" not in fields or "inner_state" in fields:  # `inner_state`: inject_hyperparams
        return False
    del fields["count"]
    return any(
        jnp.ndim(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        for leaf in jax.tree.leaves(fields)
    )


def _moments_of(part: Any) -> Moments:
    steps = int(part.count)
    if isinstance(part, optax.ScaleByAdamState):
        second = _by_path(part.nu)
        return {
            path: AdamMoments(steps, first, second[path])
            for path, first in _by_path(part.mu).items()
        }
    return {path: MuonMoment(steps, leaf) for path, leaf in _by_path(part.mu).items()}


def _by_path(tree: Any) -> dict[str, Array]:
    return dict(named_leaves(tree))


def _filled(part: Any, moments: Moments, steps: int) -> Any:
    own = [moments[path].steps for path in _moments_of(part)]
    count = _like(max(own, default=steps), part.count)

    def fill(tree: Any, field: str) -> Any:
        return map_named(lambda path, leaf: _like(getattr(moments[path], field), leaf), tree)

    if isinstance(part, optax.ScaleByAdamState):
        return part._replace(count=count, mu=fill(part.mu, "first"), nu=fill(part.nu, "second"))
    return part._replace(count=count, mu=fill(part.mu, "average"))


def _like(value: Any, leaf: Any) -> Array:
    """Returns a value with the dtype and the sharding of the leaf that it replaces."""
    array = jnp.asarray(value, jnp.result_type(leaf))
    return jax.device_put(array, leaf.sharding) if isinstance(leaf, jax.Array) else array
