"""Learning-rate multipliers: from patterns of paths to one factor a leaf."""

from collections.abc import Mapping
from typing import Any

import jax

from muon_jax._checks import check_non_negative, check_number, invalid, listed, refused
from muon_jax.trees._paths import map_named, masked_paths, named_leaves
from muon_jax.trees._patterns import check_pattern, fits_nothing, path_fits

ARGUMENT = "learning_rate_multipliers"


def check_multipliers(call: str, multipliers: Mapping[str, float]) -> None:
    """Refuses what is not a mapping from patterns to numbers of at least 0.

    Raises:
      TypeError or ValueError: names the entry; a schedule belongs in `learning_rate`.
    """
    if not isinstance(multipliers, Mapping):
        remedy = 'give a mapping from patterns to numbers, such as {"*/embed/*": 0.1}'
        raise invalid(call, ARGUMENT, multipliers, remedy, TypeError)
    for pattern, factor in multipliers.items():
        entry = f"{ARGUMENT}[{pattern!r}]"
        check_pattern(call, ARGUMENT, pattern)
        check_number(call, entry, factor)
        check_non_negative(call, entry, factor)


def multipliers_of(
    params: Any, multipliers: Mapping[str, float], *, call: str, unmatched: Any = None
) -> Any:
    """Gives every leaf the factor of the first pattern that fits its path.

    Args:
      params: any pytree; what a mask hides of it counts as a path that a pattern may mean.
      multipliers: factors by pattern, in order.
      call: the call that is named.
      unmatched: factors of the leaves that no pattern fits, as a tree like `params`; None is 1.

    Returns:
      The same tree with a number for every leaf.

    Raises:
      ValueError: a pattern decides no leaf, since it fits none or earlier ones take them all.
    """
    unused = dict(multipliers)

    def factor_of(name: str, otherwise: float = 1.0) -> float:
        for pattern, factor in multipliers.items():
            if path_fits(pattern, name):
                unused.pop(pattern, None)
                return float(factor)  # a NumPy scalar would widen updates of half precision
        return otherwise

    if unmatched is None:
        unmatched = jax.tree.map(lambda _: 1.0, params)
    factors = map_named(lambda path, _, otherwise: factor_of(path, otherwise), params, unmatched)
    for path in masked_paths(params):
        factor_of(path)
    if unused:
        raise _decides_nothing(next(iter(unused)), params, call)
    return factors


def _decides_nothing(pattern: str, params: Any, call: str) -> Exception:
    paths = [path for path, _ in named_leaves(params)]
    taken = [path for path in paths if path_fits(pattern, path)]
    if taken:
        return refused(
            call,
            f"earlier patterns of {ARGUMENT} take all that {pattern!r} fits: {listed(taken, 3)}",
            "Put it before them, since the first that fits wins",
        )
    return fits_nothing(call, ARGUMENT, pattern, paths)
