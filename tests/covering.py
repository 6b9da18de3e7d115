"""Parametrisations: `make test` runs a covering subset, `make test-all` every value."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def covering(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Returns the values as parameters of pytest, where all but those of `fast` are slow.

    Raises:
        ValueError: A value of `fast` is no value of the parametrisation.
    """
    values = list(values)
    if unknown := [value for value in fast if value not in values]:
        raise ValueError(f"covering(fast=...): {unknown} are no values of {values}")
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if value in fast else pytest.mark.slow,
        )
        for value in values
    ]
