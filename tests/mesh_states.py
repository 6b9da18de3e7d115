"""Cases: shardings of state from the first step on, and state after a step that overflowed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import muon_jax
from muon_jax.diagnostics import collectives
from tests.mesh_setup import (
    case,
    compilations,
    gpt,
    lies_alike,
    make_mesh,
    on,
    random_leaves,
    transform,
)

SCHEDULE = optax.linear_schedule(0.1, 0.01, 5)


def model(kind: str) -> Any:
    """Returns the weights of a small GPT, and a norm for the fallback."""
    leaves, _ = gpt("hsdp", kind, layers=1, width=32)
    mesh = leaves["layer_0"]["up"].sharding.mesh
    return leaves | on(mesh, {"norm": np.ones(32, np.float32)}, {"norm": P("fsdp")})


def trainer(tx: optax.GradientTransformation) -> Any:
    def train(gradients: Any, params: Any, state: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(train)


@case("Auto", "Explicit")
def second_step(kind: str) -> dict[str, Any]:
    def counted(tx: optax.GradientTransformation) -> int:
        params, train = model(kind), trainer(tx)
        trained, state = train(params, params, tx.init(params))
        return compilations(lambda: train(trained, trained, state))

    schedule = optax.constant_schedule(0.1)
    return {
        "muon": counted(muon_jax.muon(0.1)),
        "momentum_rms": counted(muon_jax.momentum_rms(schedule)),
    }


@case("Auto", "Explicit")
def traced_init(kind: str) -> dict[str, Any]:
    params = model(kind)
    matrices = {"layer_0": params["layer_0"]}
    mixed = make_mesh({"fsdp": 4, "tensor": 2}, kind, {"Auto": "Explicit"}.get(kind, "Auto"))
    both = on(mixed, random_leaves({"up": (8, 16)}), {"up": P("fsdp", "tensor")})
    beside_others = jax.jit(lambda: transform().init(both))()
    with jax.set_mesh(params["norm"].sharding.mesh):
        muon = jax.jit(transform().init)(matrices)
        momentum_rms = jax.jit(muon_jax.scale_by_momentum_rms().init)(params)
        closed_over = jax.jit(lambda: transform().init(matrices))()
    return {
        "scale_by_muon of what it closes over": lies_alike(closed_over.mu, matrices),
        "scale_by_muon of what lies on a mixed mesh": lies_alike(beside_others.mu, both),
        "scale_by_muon": lies_alike(muon.mu, matrices),
        "scale_by_momentum_rms": lies_alike(momentum_rms.mu, params),
    }


@case("Auto", "Explicit")
def skipped(kind: str) -> dict[str, Any]:
    """Takes a step, and one whose gradient overflows in one entry, so on one device."""
    params = model(kind)
    gradients = jax.tree.map(jnp.sin, params)
    broken = jax.tree.map(jnp.copy, gradients)
    down = gradients["layer_0"]["down"]
    overflowed = np.array(down)
    overflowed[-1, -1] = np.inf
    broken["layer_0"]["down"] = jax.device_put(overflowed, down.sharding)

    plain = muon_jax.muon(SCHEDULE, weight_decay=0.1)
    skipping = muon_jax.skip_nonfinite(plain)
    start = params, skipping.init(params)
    train = trainer(skipping)
    before = train(gradients, *start)
    after = train(broken, *before)
    expected = trainer(plain)(gradients, params, plain.init(params))
    return {
        "skipped": [int(state.skipped) for _, state in (before, after)],
        "changed": difference((after[0], after[1].inner_state), (before[0], before[1].inner_state)),
        "kept": lies_alike(before, start) and lies_alike(after, start),
        "error": difference((before[0], before[1].inner_state), expected),
    }


PRECONDITIONERS = {
    "full": muon_jax.SecondMoment(),
    "factored": muon_jax.SecondMoment(factored=True),
    "soap": muon_jax.Soap(),
}


@case(*((kind, name) for kind in ("Auto", "Explicit") for name in PRECONDITIONERS))
def preconditioned(kind: str, name: str) -> dict[str, Any]:
    """Takes three steps on the mesh and on one device; returns the error as `error` does."""
    params, leaves = gpt("hsdp", kind, layers=1, width=32)
    tx = transform(precondition=PRECONDITIONERS[name])
    train = trainer(tx)
    (there, state), (here, _) = (
        functools.reduce(lambda run, _: train(run[0], *run), range(3), (tree, tx.init(tree)))
        for tree in (params, jax.tree.map(jnp.asarray, leaves))
    )
    like_params = state.precondition if name == "full" else state.mu
    return {
        "error": difference(there, here) / max(map(jnp.max, jax.tree.leaves(here))).item(),
        "lies": all(lies_alike(tree, params) for tree in (there, state.mu, like_params)),
    }


@case("Auto", "Explicit")
def soap_at_owners(kind: str) -> dict[str, Any]:
    """Trains eight layers, one on each device, and three, which do not divide evenly."""
    mesh = make_mesh({"fsdp": 8}, kind)
    layers = random_leaves({f"layer_{index}": {"up": (16, 24)} for index in range(8)})
    placed = on(mesh, layers, jax.tree.map(lambda _: P("fsdp"), layers))
    odd = random_leaves({"odd": (3, 16, 24)})
    params, leaves = placed | on(mesh, odd, {"odd": P(None, "fsdp")}), layers | odd
    tx = transform(precondition="soap")
    state, alone, train = tx.init(params), tx.init(leaves), trainer(tx)
    with jax.set_mesh(mesh):
        traced = jax.jit(tx.init)(params)
    trained, after = train(params, params, state)
    here, here_after = train(leaves, leaves, alone)
    eager, _ = tx.update(params, state, params)
    compiled = train.lower(placed, placed, tx.init(placed)).compile()
    return {
        "kinds": {k: v.count for k, v in collectives(compiled).by_kind().items()},
        "axes": {
            name: tuple(part.size.sharding.spec).index("fsdp")
            for name, [(part,)] in after.precondition.items()
        },
        "lies": all(
            lies_alike(state.precondition, other)
            for other in (traced.precondition, after.precondition)
        ),
        "second step": compilations(lambda: train(trained, trained, after)),
        "error": max(
            difference(trained, here),
            difference(after.precondition, here_after.precondition),
            difference(jax.tree.map(jnp.add, params, eager), here),
        ),
    }


@case(("Auto", "int8"), ("Explicit", "int8"), ("Explicit", "bfloat16"))
def quantized(kind: str, dtype: str) -> dict[str, Any]:
    """Measures the shardings of quantized state, and that reading it sends nothing."""
    params, _ = gpt("hsdp", kind, layers=1, width=32)

    def sent(tx: optax.GradientTransformation) -> tuple[Any, float]:
        state = jax.jit(tx.init)(params)
        compiled = trainer(tx).lower(params, params, state).compile()
        _, after = compiled(params, params, state)
        return after, collectives(compiled).received_bytes

    plain = transform()
    expected = sent(plain)[1]
    state, received = sent(muon_jax.quantize_state(plain, dtype, smallest=1))
    codes = jax.tree.map(
        lambda leaf: leaf[0] if isinstance(leaf, tuple) else leaf,
        state.inner_state.mu,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    return {"lies": lies_alike(codes, params), "more": received - expected}


def difference(left: Any, right: Any) -> float:
    """Returns the largest difference of two trees; NaN where only one has a NaN."""
    each = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), left, right)
    return float(np.max(jax.tree.leaves(each)))
