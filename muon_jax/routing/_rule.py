"""A rule: which paths, to which view or label, and why."""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from muon_jax._checks import invalid, named
from muon_jax.routing._context import Leaf
from muon_jax.trees._patterns import check_pattern, path_fits
from muon_jax.views._matrix_axes import MatrixAxes

MUON = "muon"
FALLBACK = "adamw"

Outcome: TypeAlias = MatrixAxes | str | tuple[MatrixAxes, ...] | None
"""A view for Muon; the label of another transformation; candidate views among which only the user
can choose, which means ambiguous; or None where the rule does not apply.
"""

_OUTCOMES = (MatrixAxes, str, tuple, type(None))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Sends the parameters whose path fits a pattern to Muon under a view, or elsewhere.

    A path is the names down to a parameter joined by `/`, without the final `.value` of Flax; dots
    count as slashes, and case does not matter. In a pattern, `*` as a whole name stands for any
    number of names, also none unless it comes last; within a name it stands for any characters and
    `?` for one, and `{query,key}` is either. The first rule that fits wins, and yours come before
    the default ones. A rule whose pattern fits no path of the tree raises an error.

    Args:
      pattern: which paths, such as `"*/attn/{query,key}/kernel"`.
      to: a `MatrixAxes` sends the parameter to Muon under that view, whose axes are those of the
        array as stored (`rows=-2, cols=-1` fits a scanned stack as well); a label such as
        `"adamw"` sends it to the transformation of that name; a function of the `Leaf` returns
        either, or None to leave it to the next rule, or a tuple of views for an array that only
        the user can decide.
      why: the reason, which `explain` shows.
      name: what `explain` calls the rule; the pattern by default.

    Raises:
      ValueError: the pattern is unusable, or the label is `"muon"`, which does not give the view.
      TypeError: `to` is none of the above.

    Examples:
      >>> import muon_jax
      >>> halves = muon_jax.MatrixAxes(rows=-2, cols=-1, split=2)
      >>> tx = muon_jax.muon(3e-4, rules=[muon_jax.Rule("*/gate_up/kernel", halves)])
    """

    pattern: str
    to: MatrixAxes | str | Callable[[Leaf], Outcome]
    why: str = "a rule of yours"
    name: str = ""

    @named("Rule", inside=True)
    def __post_init__(self):
        check_pattern("pattern", self.pattern)
        if self.to == MUON:
            raise invalid("to", MUON, "give the view, such as MatrixAxes(rows=-2, cols=-1)")
        if not (isinstance(self.to, MatrixAxes | str) or callable(self.to)):
            remedy = 'give a MatrixAxes, a label such as "adamw", or a function of the leaf'
            raise invalid("to", self.to, remedy, TypeError)
        object.__setattr__(self, "name", self.name or self.pattern)

    def fits(self, path: str) -> bool:
        """Returns whether the pattern fits a path."""
        return path_fits(self.pattern, path)

    def outcome(self, leaf: Leaf) -> Outcome:
        """Returns where a leaf that fits goes, or None where the rule does not apply after all."""
        found = self.to(leaf) if callable(self.to) else self.to
        if found == MUON or not isinstance(found, _OUTCOMES):
            remedy = 'let the function return a MatrixAxes, a label such as "adamw", or None'
            with named("Rule", inside=True):
                raise invalid("to", found, remedy, TypeError)
        return found
