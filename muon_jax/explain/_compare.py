"""What an optimizer does with the parameters of a model beside what their loss tells of them."""

from collections.abc import Mapping, Sequence

from muon_jax.routing._route import Route
from muon_jax.routing._rule import FALLBACK, MUON
from muon_jax.routing._traced import TracedLeaf
from muon_jax.views._matrix_axes import same_matrices


def differences(routes: Sequence[Route], traced: Sequence[TracedLeaf]) -> Mapping[str, TracedLeaf]:
    """Returns by path what the loss tells of parameters that are routed otherwise.

    A route differs if it sends a parameter to the other of Muon and its fallback, or views it as
    other matrices. Labels of the user's, and what the loss does not tell, are not compared.
    """
    told = {leaf.path: leaf for leaf in traced if leaf.read}
    return {
        found.path: told[found.path]
        for found in routes
        if found.label in (MUON, FALLBACK)
        and found.path in told
        and _differ(found, told[found.path])
    }


def _differ(found: Route, told: TracedLeaf) -> bool:
    if found.axes is None or told.axes is None:
        return found.axes is not told.axes
    return not same_matrices(found.axes, told.axes, found.shape)
