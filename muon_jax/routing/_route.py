"""Routing: every parameter to Muon under a view, or elsewhere, each for a stated reason."""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from muon_jax._checks import check_choice, listed, named, refused
from muon_jax.routing._context import Leaf
from muon_jax.routing._default_rules import DEFAULT_RULES
from muon_jax.routing._leaves import leaves_of
from muon_jax.routing._rule import FALLBACK, MUON, Outcome, Rule
from muon_jax.routing._traced import AxesLike, axes_as_rules
from muon_jax.trees._paths import is_placeholder
from muon_jax.trees._patterns import fits_nothing, matches, path_fits
from muon_jax.views._matrix_axes import MatrixAxes, Shape

Ambiguous: TypeAlias = Literal["error", "fallback"]


@dataclasses.dataclass(frozen=True)
class Route:
    """Where one parameter goes, and why.

    Attributes:
      path: its names joined by `/`.
      shape: as stored.
      dtype: as stored.
      label: `"muon"`, `"adamw"`, or a label that a rule of the user's gives.
      axes: the view; None unless the label is `"muon"`.
      rule: the name of the rule that decided.
      why: its reason.
      by_default: whether it is a rule of the library.
      candidates: the views among which only the user can choose.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    label: str
    axes: MatrixAxes | None
    rule: str
    why: str
    by_default: bool = True
    candidates: tuple[MatrixAxes, ...] = ()


def route(
    params: Any,
    *,
    rules: Iterable[Rule] = (),
    axes: AxesLike = None,
    ambiguous: Ambiguous = "error",
) -> Any:
    """Routes every parameter of a tree: by the user's rules, by axes, then by the default rules.

    Returns:
      The same tree with a `Route` for every array. `None` and `optax.MaskedNode` stay.

    Raises:
      ValueError: the tree is empty, a pattern fits no path, a view does not fit, an array has
        several candidate views, or one of more than two axes is in a masked tree.
      TypeError: a leaf is no array of floating-point numbers, or a complex one is a matrix.
    """
    own = check_rules(rules, ambiguous)
    if is_placeholder(params):
        return params
    leaves, masked = leaves_of(params)
    paths = [*(leaf.path for leaf in leaves), *masked]
    for rule in own:
        if not any(map(rule.fits, paths)):
            raise fits_nothing("rules", rule.pattern, paths)
    own += axes_as_rules(axes, params)
    routes = [_route_of(leaf, own, bool(masked)) for leaf in leaves]
    unclear = [found for found in routes if found.candidates]
    if unclear and ambiguous == "error":
        raise _ambiguity(unclear, routes)
    return jax.tree.unflatten(jax.tree.structure(params), routes)


@named("label_params")
def label_params(
    params: Any,
    *,
    rules: Iterable[Rule] = (),
    axes: AxesLike = None,
    ambiguous: Ambiguous = "error",
) -> Any:
    """Labels every parameter `"muon"` or `"adamw"`, ready for `optax.multi_transform`.

    Args:
      params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
      rules: rules of your own, tried first; they may give labels of their own.
      axes: views that come before the default rules, as for `muon`.
      ambiguous: what becomes of an array with several candidate views: `"error"`, or `"fallback"`
        to label it `"adamw"`.

    Returns:
      The same tree with a label for every array.

    Raises:
      ValueError: an array is ambiguous, a rule fits no path, a rule's view does not fit, the tree
        is empty, or a mask hides parts of it that the rules need.
      TypeError: a leaf is no array of floating-point numbers, or a complex one is a matrix.

    Examples:
      >>> import jax, muon_jax
      >>> layer = {"kernel": jax.numpy.ones((4, 8)), "bias": jax.numpy.ones(8)}
      >>> muon_jax.label_params({"dense": layer})
      {'dense': {'bias': 'adamw', 'kernel': 'muon'}}
    """
    routes = route(params, rules=rules, axes=axes, ambiguous=ambiguous)
    return jax.tree.map(lambda found: found.label, routes)


@named("matrix_axes")
def matrix_axes(params: Any, *, rules: Iterable[Rule] = (), ambiguous: Ambiguous = "error") -> Any:
    """Returns the view of every parameter as matrices; None where Muon leaves it alone.

    Args:
      params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
      rules: rules of your own, tried before the default ones.
      ambiguous: what becomes of an array with several candidate views: `"error"`, or `"fallback"`
        for None.

    Returns:
      The same tree with a `MatrixAxes` or None for every array, ready for `scale_by_muon(axes=)`.

    Raises:
      ValueError or TypeError: as `label_params`.

    Examples:
      >>> import jax, muon_jax
      >>> muon_jax.matrix_axes({"query": {"kernel": jax.numpy.ones((8, 2, 4))}})
      {'query': {'kernel': MatrixAxes(rows=0, cols=(1, 2))}}
    """
    routes = route(params, rules=rules, ambiguous=ambiguous)
    return jax.tree.map(lambda found: found.axes, routes)


def check_labels(routes: Any, known: Collection[str]) -> None:
    """Raises ValueError where a rule gives a label that no optimizer has."""
    unknown = [each for each in jax.tree.leaves(routes) if each.label not in known]
    if unknown:
        labels = listed((f"'{each.path}' the label {each.label!r}" for each in unknown), 4)
        choice = listed(map(repr, sorted(known)))
        problem = f"rules give {labels}, but the known labels are {choice}"
        remedy = "Give an optimizer for each, such as transforms={'frozen': optax.set_to_zero()}"
        raise refused(problem, remedy)


def check_rules(rules: Iterable[Rule], ambiguous: Ambiguous) -> tuple[Rule, ...]:
    """Returns the rules as a tuple, after checking them and `ambiguous`."""
    check_choice("ambiguous", ambiguous, ("error", "fallback"))
    if isinstance(rules, Rule):
        raise refused(f"rules is {rules!r}", "Put it in a list, rules=[...]", TypeError)
    checked = tuple(rules)
    for rule in checked:
        if not isinstance(rule, Rule):
            raise refused(f"rules holds {rule!r}", "Give muon_jax.Rule values", TypeError)
    return checked


def _route_of(leaf: Leaf, rules: Sequence[Rule], masked: bool) -> Route:
    own = ((rule, rule.outcome(leaf)) for rule in rules if rule.fits(leaf.path))
    chosen = next((each for each in own if each[1] is not None), None)
    if chosen is None and masked and len(leaf.shape) > 2:
        problem = f"the tree is masked at '{leaf.path}', but the rules need the whole tree"
        raise refused(problem, "Pass axes=muon_jax.matrix_axes(params)")
    rule, outcome = chosen or _by_default(leaf)
    description, by_default = (leaf.path, leaf.shape, leaf.dtype), chosen is None
    if isinstance(outcome, tuple):
        return Route(*description, FALLBACK, None, "ambiguous", rule.why, by_default, outcome)
    if not isinstance(outcome, MatrixAxes):
        return Route(*description, str(outcome), None, rule.name, rule.why, by_default)
    if leaf.dtype.kind == "c":
        problem = f"'{leaf.path}' has dtype {leaf.dtype}, but Muon orthogonalises real matrices"
        remedy = f'Send it elsewhere, by rules=[Rule("{as_pattern(leaf.path)}", "adamw")]'
        raise refused(problem, remedy, TypeError)
    outcome.check(leaf.shape, path=leaf.path)
    repeats = f"; axis {listed(map(str, leaf.stack))} repeats it" if leaf.stack else ""
    return Route(*description, MUON, outcome, rule.name, rule.why + repeats, by_default)


def _by_default(leaf: Leaf) -> tuple[Rule, Outcome]:
    """Returns the first default rule that applies, and its outcome in the axes as stored."""
    applied = ((rule, rule.outcome(leaf)) for rule in default_rules_for("/".join(leaf.names)))
    rule, outcome = next(each for each in applied if each[1] is not None)
    if isinstance(outcome, tuple):
        return rule, tuple(as_stored(view, leaf) for view in outcome)
    if not isinstance(outcome, MatrixAxes):
        return rule, outcome
    sides = [
        math.prod(leaf.layer_shape[axis] for axis in group)
        for group in (outcome.rows, outcome.cols)
    ]
    return rule, FALLBACK if 1 in sides else as_stored(outcome, leaf)


def as_stored(axes: MatrixAxes, leaf: Leaf) -> MatrixAxes:
    """Renames the axes of one layer to those of the stored array, which may be a stack."""
    if not leaf.stack:
        return axes
    kept = [axis for axis in range(len(leaf.shape)) if axis not in leaf.stack]
    rows, cols = ([kept[axis] for axis in group] for group in (axes.rows, axes.cols))
    return MatrixAxes(rows, cols, axes.split)


@functools.lru_cache(maxsize=4096)
def default_rules_for(names: str) -> tuple[Rule, ...]:
    """Returns the default rules that fit a path of plain names, which layers share."""
    return tuple(rule for rule in DEFAULT_RULES if matches(rule.pattern, names))


def as_pattern(path: str) -> str:
    """Returns a pattern that fits a path: the path, or `*` for an array that is the whole tree."""
    return re.sub(r"[*{},]", "?", path) or "*"


def _ambiguity(unclear: Sequence[Route], routes: Sequence[Route]) -> Exception:
    """Returns the error that shows every candidate view as the line to write.

    Layers that differ in a number alone share a line, if its pattern fits no other parameter.
    """
    lines: dict[str, str] = {}
    for found in unclear:
        exact, ndim = as_pattern(found.path), len(found.shape)
        shared = re.sub(r"(?<![^/])\d+(?![^/])", "*", exact)
        alike = (each.candidates for each in routes if path_fits(shared, each.path))
        pattern = shared if set(alike) == {found.candidates} else exact
        for view in found.candidates:
            rows, cols = (
                [axis % ndim - ndim for axis in group] for group in (view.rows, view.cols)
            )
            batch, inputs, outputs = view.matrix_shapes(found.shape)[0]
            line = f'Rule("{pattern}", {MatrixAxes(rows, cols, view.split)!r})'
            lines.setdefault(line, f"{line}  # {batch} of {inputs} x {outputs}")
    several = any(len(found.candidates) > 1 for found in unclear)
    return refused(
        listed((f"{found.path or 'the array'} {found.shape}" for found in unclear), 4)
        + (" can be read as matrices in several ways" if several else " may be a matrix or none"),
        "Pass the view that fits in rules=[...], or ambiguous='fallback' to leave it to AdamW:"
        + "".join(f"\n    {line}" for line in lines.values()),
    )
