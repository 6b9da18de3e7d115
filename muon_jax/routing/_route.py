"""Routing: every parameter to Muon under a view, or elsewhere, each for a stated reason."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from muon_jax._checks import check_choice, listed, refused
from muon_jax.routing._context import Leaf, leaves_of
from muon_jax.routing._default_rules import DEFAULT_RULES, NUMBER
from muon_jax.routing._rule import FALLBACK, MUON, Outcome, Rule
from muon_jax.trees._paths import hidden_by_masks
from muon_jax.views._matrix_axes import MatrixAxes, Shape

_NUMBER = re.compile(r"(?<![^/])\d+(?![^/])")
"""A whole name that is a number: the index of a layer or an expert."""

Ambiguous: TypeAlias = Literal["error", "fallback"]


@dataclasses.dataclass(frozen=True)
class Route:
    """Where one parameter goes: its label, its view if Muon takes it, and the rule that said so.

    Attributes:
      by_default: whether that is a rule of the library, not one of the user's.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    label: str
    axes: MatrixAxes | None
    rule: str
    why: str
    by_default: bool


def route(
    params: Any, *, rules: Iterable[Rule] = (), ambiguous: Ambiguous = "error", call: str = "route"
) -> Any:
    """Routes every parameter of a tree.

    Returns:
      The same tree with a `Route` for every array. `None` and `optax.MaskedNode` stay.

    Raises:
      ValueError: the tree is empty, a view does not fit, or a leaf can be read in several ways.
      TypeError: a leaf is no array of floating-point numbers, or a complex one is a matrix.
    """
    own = check_rules(rules, ambiguous, call)
    leaves, structure = leaves_of(params, call)
    decisions = [_decide(leaf, own) for leaf in leaves]
    unread = {
        leaf: outcome
        for leaf, (_, outcome, _) in zip(leaves, decisions, strict=True)
        if isinstance(outcome, tuple)
    }
    if unread and ambiguous == "error":
        raise _ambiguity(unread, bool(hidden_by_masks(params)), call)
    return jax.tree.unflatten(
        structure,
        [_routed(leaf, *decision, call) for leaf, decision in zip(leaves, decisions, strict=True)],
    )


def label_params(params: Any, *, rules: Iterable[Rule] = (), ambiguous: Ambiguous = "error") -> Any:
    """Labels every parameter `"muon"` or `"adamw"`, ready for `optax.multi_transform`.

    Args:
      params: any pytree of arrays or of `jax.ShapeDtypeStruct`.
      rules: rules of your own, tried before the default ones; they may give labels of their own.
      ambiguous: what becomes of an array that no rule knows and that has several readings as
        matrices: `"error"`, or `"fallback"` to label it `"adamw"`.

    Returns:
      The same tree with a label for every array.

    Raises:
      ValueError: an array is ambiguous, a rule's view does not fit, or the tree is empty.
      TypeError: a leaf is no array of floating-point numbers, or a complex one is a matrix.

    Examples:
      >>> import jax, muon_jax
      >>> layer = {"kernel": jax.numpy.ones((4, 8)), "bias": jax.numpy.ones(8)}
      >>> muon_jax.label_params({"dense": layer})
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
      >>> import jax, muon_jax
      >>> muon_jax.matrix_axes({"query": {"kernel": jax.numpy.ones((8, 2, 4))}})
      {'query': {'kernel': MatrixAxes(rows=0, cols=(1, 2))}}
    """
    routes = route(params, rules=rules, ambiguous=ambiguous, call="matrix_axes")
    return jax.tree.map(lambda found: found.axes, routes)


def check_labels(routes: Any, known: Collection[str], *, call: str) -> None:
    """Refuses a label that a rule gives and no optimizer has."""
    unknown = [
        f"'{found.path}' the label {found.label!r}"
        for found in jax.tree.leaves(routes)
        if found.label not in known
    ]
    if unknown:
        raise refused(
            call,
            f"rules give {listed(unknown, 4)}, for which there is no optimizer",
            "Give one for each in others, such as others={'frozen': optax.set_to_zero()}",
        )


def see_all(call: str) -> str:
    """Says how the rules get to see what a mask would hide from them."""
    if call == "muon":
        return "freeze by rules, with others={'frozen': optax.set_to_zero()}, instead of masking"
    return "give axes=muon_jax.matrix_axes(params) of the whole tree"


def check_rules(rules: Iterable[Rule], ambiguous: Ambiguous, call: str) -> tuple[Rule, ...]:
    """Returns the rules; refuses what is none, and another word for what is ambiguous."""
    check_choice(call, "ambiguous", ambiguous, ("error", "fallback"))
    if isinstance(rules, Rule):
        raise refused(call, f"rules is {rules!r}", "Put it in a list, rules=[...]", TypeError)
    checked = tuple(rules)
    for rule in checked:
        if not isinstance(rule, Rule):
            raise refused(call, f"rules holds {rule!r}", "Give muon_jax.Rule values", TypeError)
    return checked


def views_by_default(routes: Iterable[Route]) -> list[MatrixAxes | None]:
    """Returns the views that the default rules read; None in place of those that the user gave."""
    return [found.axes if found.by_default else None for found in routes]


def _decide(leaf: Leaf, rules: Sequence[Rule]) -> tuple[Rule, Outcome, bool]:
    """Returns the rule, what it says, and whether it is a default one."""
    for rule in rules:
        outcome = rule.outcome(leaf) if rule.fits(leaf.name) else None
        if outcome is not None:
            return rule, outcome, False
    for rule in _default_rules_for(_NUMBER.sub(NUMBER, leaf.name)):
        outcome = rule.outcome(leaf)
        if isinstance(outcome, MatrixAxes):
            return rule, _as_stored(outcome, leaf), True
        if outcome is not None:
            return rule, outcome, True
    raise AssertionError("the last default rule applies to every leaf")


@functools.lru_cache(maxsize=4096)
def _default_rules_for(name: str) -> tuple[Rule, ...]:
    """Matches the patterns once for all layers and experts that differ in a number alone."""
    return tuple(rule for rule in DEFAULT_RULES if rule.fits(name))


def _routed(leaf: Leaf, rule: Rule, outcome: Outcome, by_default: bool, call: str) -> Route:
    known = leaf.path, leaf.shape, leaf.dtype
    if isinstance(outcome, MatrixAxes):
        if leaf.dtype.kind == "c":
            raise refused(
                call,
                f"'{leaf.path}' has dtype {leaf.dtype}, but Muon orthogonalises real matrices",
                f'Send it elsewhere, by rules=[Rule("{leaf.path}", "adamw")]',
                TypeError,
            )
        outcome.check(leaf.shape, call=call, path=leaf.path)
        repeats = f"; axis {listed(map(str, leaf.stack))} repeats it" if leaf.stack else ""
        return Route(*known, MUON, outcome, rule.name, rule.why + repeats, by_default)
    if isinstance(outcome, str):
        return Route(*known, outcome, None, rule.name, rule.why, by_default)
    return Route(*known, FALLBACK, None, "ambiguous", rule.why, by_default)


def _as_stored(axes: MatrixAxes, leaf: Leaf) -> MatrixAxes:
    """Renames the axes of one layer to those of the stored array, which may be a stack."""
    kept = [axis for axis in range(len(leaf.shape)) if axis not in leaf.stack]
    rows, cols = ([kept[axis] for axis in group] for group in (axes.rows, axes.cols))
    return MatrixAxes(rows, cols, axes.split)


def _from_the_end(axes: MatrixAxes, ndim: int) -> MatrixAxes:
    """Counts axes from the end, so that a line to write fits stacks of the same layer too."""
    rows, cols = ([axis - ndim for axis in group] for group in (axes.rows, axes.cols))
    return MatrixAxes(rows, cols, axes.split)


def _ambiguity(unread: Mapping[Leaf, tuple[MatrixAxes, ...]], masked: bool, call: str) -> Exception:
    """Shows every reading as the line to write; layers that differ in a number share the line."""
    lines: dict[str, str] = {}
    for leaf, readings in unread.items():
        pattern = _NUMBER.sub("*", leaf.path)
        for reading in readings:
            axes = _from_the_end(_as_stored(reading, leaf), len(leaf.shape))
            batch, rows, cols = axes.matrix_shapes(leaf.shape)[0]
            line = f'Rule("{pattern}", {axes!r})'
            lines.setdefault(line, f"{line}  # {batch} of {rows} x {cols}")
    several = any(len(readings) > 1 for readings in unread.values())
    problem = "can be read as matrices in several ways" if several else "may be a matrix or none"
    whole = f"The tree is masked, which hides shapes that may decide: {see_all(call)}. Or pass"
    return refused(
        call,
        f"{listed((f'{leaf.path} {leaf.shape}' for leaf in unread), 4)} {problem}",
        f"{whole if masked else 'Pass'} the reading that fits in rules=[...], or "
        "ambiguous='fallback' to leave it to AdamW:\n    " + "\n    ".join(lines.values()),
    )
