"""Factors on updates by path, for any chain."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array

from muon_jax import _checks
from muon_jax.transforms._door import public
from muon_jax.transforms._per_tree import once_per_structure
from muon_jax.transforms._record import record_factors
from muon_jax.trees._paths import is_placeholder, map_named, masked_paths, named_leaves
from muon_jax.trees._patterns import check_pattern, fits_nothing, path_fits


@public("scale_by_path")
def scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters whose path matches a pattern.

    After an optimizer in a chain, a factor multiplies the learning rate and the weight decay of
    these parameters. The first matching pattern wins; updates without one pass unchanged. There is
    no state, so a run may continue with other factors.

    Args:
      factors: numbers of at least 0 by pattern, as for `Rule`, such as `"*/embed/*"` or
        `"blocks/{0,1}/*"`.

    Returns:
      A transformation whose updates have the dtype of the incoming ones.

    Raises:
      TypeError or ValueError: at once for an unusable factor or pattern; at `init` for a pattern
        that matches no path, or only paths that earlier patterns match.

    Examples:
      >>> import muon_jax, optax
      >>> tx = optax.chain(muon_jax.muon(1e-3), muon_jax.scale_by_path({"*/embed/*": 0.1}))
    """
    if not isinstance(factors, Mapping):
        remedy = 'give a mapping from patterns to numbers, such as {"*/embed/*": 0.1}'
        raise _checks.invalid("factors", factors, remedy, TypeError)
    for pattern, factor in factors.items():
        check_pattern("factors", pattern)
        _checks.check_number(f"factors[{pattern!r}]", factor)
        _checks.check_non_negative(f"factors[{pattern!r}]", factor)
    # A NumPy scalar would widen updates of half precision.
    numbers = {pattern: float(factor) for pattern, factor in factors.items()}
    factors_of = once_per_structure(lambda tree: by_leaf(tree, numbers))

    def init(params: optax.Params) -> optax.EmptyState:
        if not is_placeholder(params):
            found = factors_of(params)
            paths = [path for path, _ in named_leaves(params)]
            record_factors(dict(zip(paths, jax.tree.leaves(found), strict=True)))
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        return jax.tree.map(times, updates, factors_of(updates)), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def times(update: Array, factor: float) -> Array:
    """Multiplies by a factor other than 1."""
    return update if factor == 1 else update * factor


def by_leaf(params: Any, factors: Mapping[str, float]) -> Any:
    """Returns for every leaf the factor of the first pattern that matches its path, or 1.

    Args:
      params: any pytree; patterns may also match paths that a mask hides.
      factors: factors by pattern, in order.

    Raises:
      ValueError: a pattern decides no leaf.
    """
    unused = dict(factors)

    def factor_of(name: str) -> float:
        for pattern, factor in factors.items():
            if path_fits(pattern, name):
                unused.pop(pattern, None)
                return factor
        return 1.0

    found = map_named(lambda path, _: factor_of(path), params)
    for path in masked_paths(params):
        factor_of(path)
    if unused:
        raise _decides_nothing(next(iter(unused)), params)
    return found


def _decides_nothing(pattern: str, params: Any) -> Exception:
    paths = [path for path, _ in named_leaves(params)]
    taken = [path for path in paths if path_fits(pattern, path)]
    if taken:
        return _checks.refused(
            f"earlier patterns of factors take all that {pattern!r} fits: "
            f"{_checks.listed(taken, 3)}",
            "Put it before them, since the first that fits wins",
        )
    return fits_nothing("factors", pattern, paths)
