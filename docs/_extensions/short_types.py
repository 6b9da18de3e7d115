"""Writes types beside arguments as a reader imports them, such as `optax.ScalarOrSchedule`."""

import re
from typing import Any

import jax
import optax
from sphinx.util.typing import stringify_annotation

import muon_jax
from muon_jax import attention, diagnostics, migrate, recipes

UNIONS = {
    stringify_annotation(union, "smart"): name
    for name, union in {
        "optax.ScalarOrSchedule": optax.ScalarOrSchedule,
        "optax.Schedule": optax.Schedule,
        "optax.Params": optax.Params,
        "jax.typing.ArrayLike": jax.typing.ArrayLike,
    }.items()
}
PUBLIC = {
    f"{value.__module__}.{name}": f"{module.__name__}.{name}"
    for module in (muon_jax, attention, diagnostics, migrate, recipes)
    for name, value in vars(module).items()
    if getattr(value, "__module__", "").startswith("muon_jax.")
}
MODULES = re.compile(r"~?\b(?:collections\.abc|typing|jaxtyping|(?:jax\.)?jaxlib\._jax)\.")


def _shorten(app: Any, kind: str, name: str, *_: Any) -> None:
    del kind
    annotations = app.env.current_document.autodoc_annotations.get(name, {})
    for argument, written in annotations.items():
        for long, short in [*UNIONS.items(), *PUBLIC.items()]:
            written = written.replace(long, short)
        annotations[argument] = MODULES.sub("", written)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-signature", _shorten, priority=900)  # after autodoc's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
