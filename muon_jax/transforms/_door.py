"""The decorator of public factories: names the call in errors, and prepares arguments."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import optax

from muon_jax._checks import named, nearest, refused

Factory = TypeVar("Factory", bound=Callable[..., Any])

_Rate = optax.ScalarOrSchedule
_HYPERPARAMETERS = (_Rate, _Rate | None, float, float | None)


def public(
    call: str,
    passes_to: Callable[..., Any] | None = None,
    other_names: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[Factory], Factory]:
    """Decorates a public factory.

    Errors name the outermost factory, also those of `init` and `update`: `recipes.keller`, not the
    `muon` that it calls. NumPy scalars become Python numbers, so that they do not change the dtype
    of updates. `optax.inject_hyperparams` injects only numbers and schedules, see `_Signature`.

    Args:
      call: the name in `muon_jax`.
      passes_to: the factory that receives the `**` arguments of this one, for the signature.
      other_names: remedies for arguments of other libraries, by their names there.
    """

    def decorate(factory: Factory) -> Factory:
        @functools.wraps(factory)
        def opened(*args: Any, **kwargs: Any) -> Any:
            with named(call):
                unknown = [name for name in kwargs if name not in known]
                if unknown and passes_to is None:  # the other factory knows other names
                    name = unknown[0]
                    remedy = other_names.get(name) or f"The nearest are {nearest(name, known)}"
                    raise refused(f"there is no argument {name!r}", remedy, TypeError)
                prepared = {name: _prepared(value) for name, value in kwargs.items()}
                made = factory(*map(_prepared, args), **prepared)
            if not isinstance(made, optax.GradientTransformation):
                return made
            return made._replace(init=named(call)(made.init), update=named(call)(made.update))

        signature = inspect.signature(factory)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        if passes_to is not None:
            parameters += [
                _Passed(p.name, p.kind, default=p.default, annotation=p.annotation)
                for p in inspect.signature(passes_to).parameters.values()
                if p.name not in signature.parameters
            ]
        known = [parameter.name for parameter in parameters]
        opened.__signature__ = _Signature(  # pyright: ignore[reportAttributeAccessIssue]
            parameters, return_annotation=signature.return_annotation
        )
        return opened  # pyright: ignore[reportReturnType]

    return decorate


class _Passed(inspect.Parameter):
    """A parameter that is passed on, without its default."""


class _Static(NamedTuple):
    """Hides a value from `optax.inject_hyperparams`."""

    value: Any


class _Signature(inspect.Signature):
    """A signature that wraps arguments which are not hyperparameters in `_Static`.

    `optax.inject_hyperparams` binds arguments by the signature, calls every callable as a schedule
    and turns every number into an array. Without the wrapper it would call a mask function with a
    step count, and orthogonalizers and numbers that set a shape would fail.
    """

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = super().bind(*args, **kwargs).arguments
        own = {
            name: parameter
            for name, parameter in self.parameters.items()
            if name in bound or not isinstance(parameter, _Passed)
        }
        wrapped = {}
        for name, parameter in own.items():
            value = bound.get(name, parameter.default)
            wrapped[name] = value if parameter.annotation in _HYPERPARAMETERS else _Static(value)
        return inspect.BoundArguments(
            inspect.Signature(list(own.values())),
            wrapped,  # pyright: ignore[reportArgumentType]
        )


def _prepared(value: Any) -> Any:
    if isinstance(value, _Static):
        return value.value
    scalar = isinstance(value, np.generic | np.ndarray) and value.ndim == 0
    return value.item() if scalar and value.dtype.kind in "biuf" else value
