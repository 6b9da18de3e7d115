"""Cases: whole steps on every layout, and leaves of every kind."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from muon_jax import Distribution, MatrixAxes, zero1_shardings
from muon_jax.diagnostics import collectives
from tests.mesh_setup import (
    LAYOUTS,
    case,
    error,
    flops,
    gpt,
    lies_alike,
    local_bytes,
    make_mesh,
    on,
    orthogonalize,
    random_leaves,
    traffic,
    transform,
)

# One training step of a whole model.


def step(gradients: Any, state: Any, params: Any) -> Any:
    updates, state = transform().update(gradients, state, params)
    return optax.apply_updates(params, updates), state


@case(*((layout, kind, "scanned") for layout in LAYOUTS for kind in ("Auto", "Explicit")))
@case(("replicated", "Auto", "apart"), ("2d", "Auto", "apart"), ("hsdp", "Explicit", "apart"))
def whole_step(layout: str, kind: str, form: str) -> dict[str, Any]:
    leaves, host = gpt(layout, kind, 8, 128, form)
    state, blank = transform().init(leaves), jax.tree.map(jnp.zeros_like, leaves)
    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(leaves, state, blank).compile()
    memory, donated = compiled.memory_analysis(), local_bytes((state, blank))
    updates, state = compiled(leaves, state, blank)
    return {
        **traffic(compiled),
        "flops": flops(compiled),
        "temporary_bytes": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes == donated,
        "error": error(updates, host),
        "kept": lies_alike(updates, leaves) and lies_alike(state.mu, leaves),
    }


@case(("replicated", "Auto"), ("fsdp", "Auto"), ("hsdp", "Auto"), ("fsdp", "Explicit"))
def narrow_wire(layout: str, kind: str) -> dict[str, Any]:
    leaves, host = gpt(layout, kind, 8, 64, "scanned")
    compiled = [
        jax.jit(lambda tree, wire=wire: orthogonalize(tree, Distribution(wire_dtype=wire)))
        .lower(leaves)
        .compile()
        for wire in (None, jnp.bfloat16)
    ]
    return {
        "bytes": [collectives(each).received_bytes for each in compiled],
        "error": error(compiled[1](leaves), host),
    }


@case(2, 6, 8, 12)
def layers(count: int) -> dict[str, Any]:
    leaves, _ = gpt("fsdp", "Explicit", count, 128, "scanned")
    compiled = jax.jit(orthogonalize).lower(leaves).compile()
    return traffic(compiled)


# Leaves of every kind. Each group has the view, the mesh and the shardings that it tests.

PLACES: Mapping[str, tuple[dict[str, int], dict[str, tuple[tuple[int, ...], P]]]] = {
    "layers": ({"layer": 8}, {"up": ((8, 64, 128), P("layer")), "out": ((16, 64, 64), P("layer"))}),
    "scanned": ({"fsdp": 8}, {"up": ((6, 64, 128), P(None, "fsdp"))}),
    "experts": ({"expert": 8}, {"up": ((2, 16, 64, 128), P(None, "expert"))}),
    "expert×tensor": (
        {"expert": 4, "tensor": 2},
        {
            "up": ((4, 64, 128), P("expert", None, "tensor")),
            "down": ((4, 128, 64), P("expert", "tensor")),
            "query": ((2, 64, 64), P(None, None, "tensor")),
            "router": ((64, 32), P()),
        },
    ),
    "3d": (
        {"data": 2, "fsdp": 2, "tensor": 2},
        {
            "up": ((64, 128), P(("tensor", "data"), "fsdp")),
            "down": ((128, 64), P(None, ("fsdp", "tensor", "data"))),
            "scanned": ((5, 64, 64), P(None, "fsdp")),
        },
    ),
    "narrow axes": (
        {"data": 1, "fsdp": 8, "tensor": 1},
        {
            "up": ((64, 128), P(("data", "fsdp"), "tensor")),
            "down": ((128, 64), P("tensor", "fsdp")),
        },
    ),
}


@case(*((name, "Auto") for name in PLACES), ("3d", "Explicit"), ("narrow axes", "Explicit"))
def place(name: str, kind: str) -> dict[str, Any]:
    sizes, leaves = PLACES[name]
    return placed_case(make_mesh(sizes, kind), leaves)


@case(("Explicit", "Auto"))
def mixed(*kinds: str) -> dict[str, Any]:
    sizes, leaves = PLACES["expert×tensor"]
    return placed_case(make_mesh(sizes, *kinds), leaves)


def placed_case(mesh: Mesh, leaves: Any, distribute: Any = "auto") -> dict[str, Any]:
    host = random_leaves({name: shape for name, (shape, _) in leaves.items()})
    tree = on(mesh, host, {name: spec for name, (_, spec) in leaves.items()})
    compiled = jax.jit(lambda tree: orthogonalize(tree, distribute)).lower(tree).compile()
    results = compiled(tree)
    return {**traffic(compiled), "error": error(results, host), "kept": lies_alike(results, tree)}


@case()
def views() -> dict[str, Any]:
    """Shards fused leaves and leaves of many axes across the borders of their parts."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, "Explicit")
    leaves = {
        "heads apart": ((64, 4, 16), P("fsdp", "tensor"), MatrixAxes(0, 2)),
        "heads as one": ((64, 4, 16), P("fsdp", "tensor"), MatrixAxes(0, (1, 2))),
        "q, k, v": ((64, 128), P("fsdp", "tensor"), MatrixAxes(0, 1, split=(64, 24, 40))),
        "rows last": ((4, 64, 16), P("tensor", "fsdp"), MatrixAxes(-1, -2)),
    }
    by_name = {name: view for name, (_, _, view) in leaves.items()}
    host = random_leaves({name: shape for name, (shape, _, _) in leaves.items()})
    tree = on(mesh, host, {name: spec for name, (_, spec, _) in leaves.items()})
    results = jax.jit(lambda tree: orthogonalize(tree, axes=by_name))(tree)
    alone = jax.jit(lambda tree: orthogonalize(tree, "off", axes=by_name))(host)
    differences = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), results, alone)
    return {"error": max(differences.values()), "kept": lies_alike(results, tree)}


@case("replica", "nobody")
def shared_by(whom: str) -> dict[str, Any]:
    """`Distribution(axes=…)` shares work along those mesh axes alone."""
    mesh = make_mesh({"replica": 2, "fsdp": 4})
    leaves = {"up": ((64, 128), P("fsdp")), "out": ((64, 64), P())}
    axes = ("replica",) if whom == "replica" else ()
    return placed_case(mesh, leaves, Distribution(axes=axes))


# State.


@case("Auto", "Explicit")
def zero1(kind: str) -> dict[str, Any]:
    mesh = make_mesh({"data": 8}, kind)
    host = random_leaves({"stack": (8, 64, 128), "out": (64, 64), "odd": (63, 128)})
    params = on(mesh, host, dict.fromkeys(host, P()))
    shardings = zero1_shardings(params, mesh, "data")
    state, blank = transform().init(params), jax.tree.map(jnp.zeros_like, params)
    state = state._replace(mu=jax.device_put(state.mu, shardings))
    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(params, state, blank).compile()
    updates, state = compiled(params, state, blank)
    return {
        **traffic(compiled),
        "error": error(updates, host),
        "kept": lies_alike(updates, params)
        and all(
            state.mu[name].sharding.is_equivalent_to(shardings[name], 2) for name in ("out", "odd")
        ),
        "specs": {name: str(sharding.spec) for name, sharding in shardings.items()},
    }


TURNS: Mapping[str, tuple[tuple[int, ...], P, P]] = {
    "layers become whole": ((8, 64, 128), P("data", None, "tensor"), P(None, None, "tensor")),
    "rows become whole": ((64, 64), P(("data", "tensor")), P("tensor")),
    "cols become whole": ((64, 64), P("tensor", "data"), P("tensor")),
    "layers turn into rows": ((8, 64, 128), P("data", None, "tensor"), P(None, "data", "tensor")),
    "rows turn into layers": ((8, 64, 64), P(None, "data"), P("data")),
    "nothing to do": ((0, 64, 64), P(None, "data"), P(None, "data")),
}


@case("Auto", "Explicit")
def turned(kind: str) -> dict[str, Any]:
    """Gives the momentum another sharding than the parameter."""
    mesh = make_mesh({"data": 4, "tensor": 2}, kind)
    host = random_leaves({name: shape for name, (shape, _, _) in TURNS.items()})
    held = on(mesh, host, {name: spec for name, (_, spec, _) in TURNS.items()})
    wanted = on(mesh, host, {name: spec for name, (_, _, spec) in TURNS.items()})
    results = jax.jit(lambda tree, like: orthogonalize(tree, like=like))(held, wanted)
    some = [name for name in TURNS if host[name].size]
    return {
        "error": error({name: results[name] for name in some}, {name: host[name] for name in some}),
        "kept": all(lies_alike(results[name], wanted[name]) for name in some),
    }
