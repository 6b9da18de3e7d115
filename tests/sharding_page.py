"""Runs the code of the sharding page on eight devices, tests its claims, and prints JSON.

`test_sharding_page.py` starts this file as a process, because the page itself sets the number of
devices.
"""

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_jax
from muon_jax import Distribution
from muon_jax.diagnostics import collectives

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "sharding.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def printed(block: str, scope: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block, scope)
    return out.getvalue()


def message(run: Callable[[], Any]) -> str:
    try:
        run()
    except NotImplementedError as problem:
        return str(problem)
    return "it works"


def cached(step: Any, arguments: Any) -> bool:
    """Compiles twice with a cache on disk; returns whether the second time used it.

    The first program stays alive, because the key of the cache contains its address, and the second
    program could get the same address.
    """
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    kept = []
    for _ in range(2):
        jax.clear_caches()
        events.clear()
        lowered = jax.jit(lambda *arguments: step(*arguments)).lower(*arguments)
        kept.append((lowered, lowered.compile()))
    return "/jax/compilation_cache/cache_hits" in events


def claims(scope: dict[str, Any]) -> dict[str, Any]:
    """Measures what each way to give the sharding allows."""
    mesh = jax.make_mesh((8,), ("fsdp",), (AxisType.Explicit,))
    explicit = jax.device_put(scope["params"], NamedSharding(mesh, P("fsdp")))
    auto, step = scope["fsdp"], scope["step"]

    def run(tx: Any) -> Any:
        return lambda params, state, gradients: step(params, state, gradients, tx)

    def limits(params: Any, tx: Any) -> dict[str, Any]:
        state = tx.init(params)
        arguments = (params, state, params)

        def loss(gradients: Any) -> Any:
            moved, _ = run(tx)(params, state, gradients)
            return sum(leaf.sum() for leaf in jax.tree.leaves(moved))

        return {
            "export": message(lambda: export.export(jax.jit(run(tx)))(*arguments)),
            "derivative": message(lambda: jax.jit(jax.grad(loss))(params)),
            "cached": cached(run(tx), arguments),
        }

    def nested(tx: Any) -> int:
        return collectives(scope["compiled"](auto, tx.init(auto), run(tx))).nested.count

    given = muon_jax.muon(0.02, distribute=Distribution.like(auto))
    with jax.set_mesh(mesh):
        of_explicit = limits(explicit, scope["tx"])
    return {
        "auto": limits(auto, scope["tx"]),
        "given": limits(auto, given),
        "explicit": of_explicit,
        "apply_if_finite": nested(optax.apply_if_finite(scope["tx"], 3)),
        "skip_nonfinite": nested(muon_jax.skip_nonfinite(scope["tx"])),
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    scope: dict[str, Any] = {}
    outputs = [printed(block, scope) for block in BLOCKS]
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        found = claims(scope)
    print(json.dumps({"outputs": outputs, "claims": found}, indent=1))
