"""Routing: every leaf to Muon under a view, or to the fallback, each for a stated reason."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from muon_jax._checks import check_choice, listed, refused
from muon_jax._leaves import Leaf, Shape, leaves_of
from muon_jax._matrix_axes import MatrixAxes
from muon_jax._rules import DEFAULT_RULES, FALLBACK, MUON, Rule

Ambiguous = Literal["error", "fallback"]


@dataclasses.dataclass(frozen=True)
class Route:
    """Where one leaf goes: its label, its view if Muon takes it, and the rule that said so."""

    path: str
    shape: Shape
    dtype: np.dtype
    label: str
    axes: MatrixAxes | None
    rule: str
    why: str


def route(
    params: Any, *, rules: Iterable[Rule] = (), ambiguous: Ambiguous = "error", call: str = "route"
) -> Any:
    """Routes every leaf of a parameter tree.

    Returns:
        The same tree with a `Route` for every array. `None` and `optax.MaskedNode` stay.

    Raises:
        ValueError: the tree is empty, a view does not fit, or a leaf can be read in several ways.
        TypeError: a leaf is no array of real or complex numbers.
    """
    check_choice(call, "ambiguous", ambiguous, ("error", "fallback"))
    leaves, structure = leaves_of(params, call)
    ordered = (*_checked(rules, call), *DEFAULT_RULES)
    routes = [_route_leaf(leaf, ordered, call) for leaf in leaves]
    unread = [leaf for leaf, found in zip(leaves, routes, strict=True) if found is None]
    if unread and ambiguous == "error":
        raise _ambiguous(unread, call)
    return jax.tree.unflatten(
        structure,
        [found or _fallback(leaf) for leaf, found in zip(leaves, routes, strict=True)],
    )


def label_params(params: Any, *, rules: Iterable[Rule] = (), ambiguous: Ambiguous = "error") -> Any:
    """Labels every parameter `"muon"` or `"adamw"`, ready for `optax.multi_transform`.

    Args:
        params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
        rules: rules of your own, tried before the default ones.
        ambiguous: what to do with an array that no rule knows and that has more than one reading:
            `"error"`, or `"fallback"` to label it `"adamw"`.

    Returns:
        The same tree with a label for every array.

    Raises:
        ValueError: an array is ambiguous, a rule's view does not fit, or the tree is empty.
        TypeError: a leaf is no floating-point array.

    Examples:
        >>> label_params({"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}})
        {'dense': {'bias': 'adamw', 'kernel': 'muon'}}
    """
    routes = route(params, rules=rules, ambiguous=ambiguous, call="label_params")
    return jax.tree.map(lambda found: found.label, routes)


def matrix_axes(params: Any, *, rules: Iterable[Rule] = (), ambiguous: Ambiguous = "error") -> Any:
    """Gives every parameter its view as matrices; None where Muon leaves it alone.

    Args:
        params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
        rules: as for `label_params`.
        ambiguous: as for `label_params`.

    Returns:
        The same tree with a `MatrixAxes` or None for every array, ready for `scale_by_muon(axes=)`.

    Raises:
        ValueError or TypeError: as `label_params`.

    Examples:
        >>> matrix_axes({"query": {"kernel": jnp.ones((8, 2, 4))}})
        {'query': {'kernel': MatrixAxes(rows=0, cols=(1, 2))}}
    """
    routes = route(params, rules=rules, ambiguous=ambiguous, call="matrix_axes")
    return jax.tree.map(lambda found: found.axes, routes)


def _checked(rules: Iterable[Rule], call: str) -> tuple[Rule, ...]:
    checked = tuple(rules)
    for rule in checked:
        if not isinstance(rule, Rule):
            raise refused(call, f"rules holds {rule!r}", "Give muon_jax.Rule values", TypeError)
    return checked


def _route_leaf(leaf: Leaf, rules: Sequence[Rule], call: str) -> Route | None:
    for rule in rules:
        outcome = rule(leaf)
        if outcome is None:
            continue
        label, axes = (MUON, outcome) if isinstance(outcome, MatrixAxes) else (outcome, None)
        if axes is not None:
            if rule in DEFAULT_RULES:
                axes = _stored(axes, leaf)
            axes.check(leaf.shape, call=call, path=leaf.path)
        return Route(leaf.path, leaf.shape, leaf.dtype, label, axes, rule.pattern, rule.why)
    return None


def _stored(axes: MatrixAxes, leaf: Leaf) -> MatrixAxes:
    """Renames the axes of one layer to those of the stored array, which may be a stack."""
    if not leaf.stack:
        return axes
    kept = [axis for axis in range(len(leaf.shape)) if axis not in leaf.stack]
    rows, cols = ([kept[axis] for axis in group] for group in (axes.rows, axes.cols))
    return MatrixAxes(rows, cols, axes.split)


def _fallback(leaf: Leaf) -> Route:
    why = "no rule knows it and it has several readings"
    return Route(leaf.path, leaf.shape, leaf.dtype, FALLBACK, None, "ambiguous", why)


def _ambiguous(leaves: Sequence[Leaf], call: str) -> Exception:
    """One line per kind of leaf: layers that differ only in their number share a pattern."""
    kinds = {re.sub(r"(?<![^/])\d+(?![^/])", "*", leaf.path): leaf for leaf in reversed(leaves)}
    lines = [
        f"{leaf.path} {leaf.shape}:"
        + "".join(f'\n    Rule("{pattern}", {axes!r})  # {said}' for axes, said in _readings(leaf))
        for pattern, leaf in reversed(kinds.items())
    ]
    return refused(
        call,
        f"{listed((leaf.path for leaf in leaves), 4)} can be read as matrices in several ways",
        "Pass the reading that fits in `rules=[...]`, or ambiguous='fallback':\n  "
        + "\n  ".join(lines),
    )


def _readings(leaf: Leaf) -> list[tuple[MatrixAxes, str]]:
    ndim = len(leaf.shape)
    views = {
        MatrixAxes(rows=-2, cols=-1): "a stack",
        MatrixAxes(rows=tuple(range(ndim - 1)), cols=ndim - 1): "inputs first",
        MatrixAxes(rows=0, cols=tuple(range(1, ndim))): "one input axis",
    }
    return [
        (axes, f"{said}: {batch} of {rows} x {cols}")
        for axes, said in views.items()
        for batch, rows, cols in axes.matrix_shapes(leaf.shape)
    ]
