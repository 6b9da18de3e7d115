"""Parametrisations: `make test` runs a covering subset, `make test-all` every value."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def covering(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Returns the values as pytest parameters; those that are not in `fast` are marked slow.

    Raises:
        ValueError: `fast` has a value that `values` does not have.
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
