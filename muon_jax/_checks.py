"""Argument checks, and the form of all error messages.

A message has the call as the user wrote it, the value, and the remedy:
`muon_jax.scale_by_muon(momentum=1.5): give a number in [0, 1)`.
"""

import contextlib
import difflib
import inspect
import numbers
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import optax

_CALL: ContextVar[str | None] = ContextVar("call", default=None)


@contextlib.contextmanager
def named(call: str | None, *, inside: bool = False) -> Iterator[None]:
    """Names the public call in progress, for error messages; also a decorator.

    Args:
      call: the name in `muon_jax`; None for code that names its calls itself, such as an optimizer
        that a user passes.
      inside: whether it replaces the name of a public call around it, as for a value that a user's
        function makes.
    """
    token = _CALL.set(call if inside else _CALL.get() or call)
    try:
        yield
    finally:
        _CALL.reset(token)


def call_in_progress() -> str:
    """Returns the name of the outermost public call."""
    call = _CALL.get()
    return f"muon_jax.{call}" if call else "muon_jax"


def invalid(
    argument: str, value: Any, remedy: str, kind: type[Exception] = ValueError
) -> Exception:
    """Returns the exception for an unusable argument, for the caller to raise."""
    return kind(f"{call_in_progress()}({argument}={_shown(value)}): {remedy}.")


def refused(problem: str, remedy: str, kind: type[Exception] = ValueError) -> Exception:
    """Returns the exception for a problem that is not in one argument, such as in a tree."""
    return kind(f"{call_in_progress()}: {problem}. {remedy}.")


def listed(items: Iterable[str], limit: int = 8) -> str:
    """Joins names for a message, the first few in full and the rest as a count."""
    names = list(items)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def nearest(name: str, known: Sequence[str]) -> str:
    """Lists the three known names that are most like a name."""
    return listed(map(repr, difflib.get_close_matches(name, known, cutoff=0.0)))


def path_name(path: Any) -> str:
    """Writes a JAX key path as users write it in patterns: `blocks/0/attn/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_bool(argument: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise invalid(argument, value, "give True or False", TypeError)


def check_choice(argument: str, value: Any, choices: Collection[str]) -> None:
    if value not in tuple(choices):  # a set or mapping would raise for an unhashable value
        raise invalid(argument, value, f"choose one of {', '.join(map(repr, choices))}")


def check_fraction(argument: str, value: Any) -> None:
    """Raises for a number outside [0, 1); schedules and arrays pass, as they are known later."""
    _check_range(argument, value, 1, "give a number in [0, 1)")


def check_no_schedule(argument: str, value: Any) -> None:
    """Raises for a schedule, where the state has no step count."""
    if callable(value):
        remedy = f"give a number, and schedule it by optax.inject_hyperparams({call_in_progress()})"
        raise invalid(argument, value, remedy, TypeError)


def check_non_negative(argument: str, value: Any) -> None:
    """Raises for a negative or non-finite number; schedules and arrays pass."""
    _check_range(argument, value, float("inf"), "give a finite number of at least 0")


def check_number(argument: str, value: Any) -> None:
    """Raises for anything but a number, schedules and arrays included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise invalid(argument, value, "give a number", TypeError)


def check_positive_int(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise invalid(argument, value, "give a whole number of at least 1", TypeError)
    if value < 1:
        raise invalid(argument, value, "give a whole number of at least 1")


def check_transformation(argument: str, value: Any) -> None:
    if not isinstance(value, optax.GradientTransformation):
        remedy = "give a gradient transformation, such as optax.set_to_zero()"
        raise invalid(argument, value, remedy, TypeError)


def check_orthogonalizer(value: Any) -> None:
    if not callable(value):
        remedy = "give a callable from (batch, rows, cols) to the same shape, or newton_schulz(...)"
        raise invalid("orthogonalizer", value, remedy, TypeError)
    ours = getattr(value, "__module__", "").startswith("muon_jax.")
    if isinstance(value, type) or (ours and inspect.isfunction(value)):
        name = value.__name__
        remedy = f"Give its result: orthogonalizer={name}(...)"
        raise refused(f"orthogonalizer={name} is not called", remedy, TypeError)
    if not isinstance(value, Hashable):  # jit takes it as a static argument
        remedy = "give a hashable callable, such as a function or a frozen dataclass"
        raise invalid("orthogonalizer", value, remedy, TypeError)


def check_float_dtype(argument: str, value: Any) -> Any:
    """Returns the dtype, or None for None; raises for one that cannot store a moving average."""
    if value is None:
        return None
    remedy = "give float32, bfloat16, float16 or float64, or None for the parameter's own"
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise invalid(argument, value, remedy, TypeError) from None
    if dtype not in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16):
        raise invalid(argument, value, remedy)
    return dtype


def _check_range(argument: str, value: Any, limit: float, remedy: str) -> None:
    if callable(value) or isinstance(value, jax.Array):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise invalid(argument, value, "give a number or a schedule", TypeError)
    if not 0 <= float(value) < limit:
        raise invalid(argument, value, remedy)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
