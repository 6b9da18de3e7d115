"""Compares the routes of an optimizer with the routes that `trace_axes` reads from a loss."""

from collections.abc import Mapping, Sequence

from muon_jax.routing._route import Route
from muon_jax.routing._rule import FALLBACK, MUON
from muon_jax.routing._traced import TracedLeaf
from muon_jax.views._matrix_axes import same_matrices


def differences(routes: Sequence[Route], traced: Sequence[TracedLeaf]) -> Mapping[str, TracedLeaf]:
    """Returns by path the traced route of every parameter whose actual route differs.

    A route differs in the choice between Muon and its fallback, or in the view as matrices. The
    user's own labels, and parameters that tracing cannot decide, are not compared.
    """
    known = {leaf.path: leaf for leaf in traced if leaf.read}
    return {
        found.path: known[found.path]
        for found in routes
        if found.label in (MUON, FALLBACK)
        and found.path in known
        and _differ(found, known[found.path])
    }


def _differ(found: Route, traced: TracedLeaf) -> bool:
    if found.axes is None or traced.axes is None:
        return found.axes is not traced.axes
    return not same_matrices(found.axes, traced.axes, found.shape)
