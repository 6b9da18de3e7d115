"""Warnings about the routes of a whole tree: no matrix for Muon, or no output head."""

import re
from collections import Counter
from collections.abc import Sequence

from muon_jax._checks import listed
from muon_jax.routing._route import MUON, Route, as_pattern

_SHOWN = 3


def notices(routes: Sequence[Route]) -> list[str]:
    """Returns warnings about the routes of a tree, each with its remedy.

    A tree whose routes all come from the user's rules has no warnings.
    """
    if not any(found.by_default for found in routes):
        return []
    if not any(found.label == MUON for found in routes):
        shapes = listed((f"{found.path or 'the array'} {found.shape}" for found in routes), _SHOWN)
        remedy = "Pass the tree that the model has, not flattened, or use another optimizer"
        return [f"no parameter goes to Muon: {shapes}. {remedy}."]
    ends = _ends(routes)
    if not ends or any(found.rule in ("head", "logits") for found in routes):
        return []
    pattern, *_ = patterns = [as_pattern(found.path) for found in ends]
    return [
        f"no output head was recognised, and {listed(patterns, _SHOWN)} may be one. Logits train "
        f'better with AdamW: pass rules=[Rule("{pattern}", "adamw")]; or confirm the matrix by '
        f'rules=[Rule("{pattern}", {ends[0].axes!r})].'
    ]


def _ends(routes: Sequence[Route]) -> list[Route]:
    """Returns matrices whose input size other arrays have too, and whose output size none has."""
    arrays = [found for found in routes if not re.search(r"(^|[/_.])b(ias)?$", found.path)]
    sizes = Counter(size for found in arrays for size in set(found.shape))
    ends = []
    for found in routes:
        if found.by_default and found.axes and found.rule == "matrix" and len(found.shape) == 2:
            inputs, outputs = found.shape[found.axes.rows[0]], found.shape[found.axes.cols[0]]
            if sizes[outputs] == 1 < sizes[inputs] and inputs != outputs:
                ends.append(found)
    return ends
