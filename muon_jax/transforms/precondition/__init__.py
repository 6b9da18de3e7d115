"""Preconditioners, which divide the momentum before orthogonalisation."""

from muon_jax.transforms.precondition._in_trees import PreconditionerLike as PreconditionerLike
from muon_jax.transforms.precondition._in_trees import tree_preconditioner as tree_preconditioner
from muon_jax.transforms.precondition._second_moment import SecondMoment as SecondMoment
from muon_jax.transforms.precondition._soap import Soap as Soap

__all__ = ["PreconditionerLike", "SecondMoment", "Soap", "tree_preconditioner"]


def __dir__() -> list[str]:
    return __all__
