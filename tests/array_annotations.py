"""Checks the shapes and dtypes of jaxtyping annotations, and ignores all other annotations.

`conftest.py` makes jaxtyping decorate the functions of `PACKAGES` with `checked`; other packages
annotate few arrays. Arguments are checked after the call, because a function validates its input
itself. Only arrays of the annotated kind are checked, because tests pass NumPy arrays and wrong
types on purpose.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray

PACKAGES = [f"muon_jax.{name}" for name in ("views", "polar", "transforms", "clip")]


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates what jaxtyping calls in place of a function of the package.

    jaxtyping checks arguments before a call and the result after it, each on a stand-in function.
    The stand-in before the call has the same signature and returns None. The one after the call
    returns the result of the real function.
    """
    signature = inspect.signature(function)
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_arrays(hint)}
    for name in hints.keys() & signature.parameters.keys():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            hints[name] = tuple[hints[name], ...]

    def check(*args: Any, **kwargs: Any) -> None:
        returned = function(*args, **kwargs)
        if hints and returned is not None:
            values = signature.bind(*args, **kwargs).arguments | {"return": returned}
            for name in hints.keys() & values.keys():
                if not _fits(values[name], hints[name]):
                    raise TypeError(f"{name} is not {hints[name]}")

    return check if hints else function


def _has_arrays(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(_has_arrays, get_args(hint)))


def _fits(value: Any, hint: Any) -> bool:
    kind, args = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        kinds = [each for each in args if _has_arrays(each)]
        return not kinds or any(_fits(value, each) for each in kinds)
    if kind is tuple and isinstance(value, tuple) and args[-1] is not ...:
        return all(map(_fits, value, args))
    if isinstance(value, Mapping | Sequence) and args:
        items = value.values() if isinstance(value, Mapping) else value
        return all(_fits(item, args[isinstance(value, Mapping)]) for item in items)
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return not is_array or not isinstance(value, hint.array_type) or isinstance(value, hint)
