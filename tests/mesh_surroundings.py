"""Cases: wrappers around a step, and steps inside shard_map."""

import contextlib
import functools
import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_jax
from muon_jax import Distribution, MatrixAxes
from muon_jax.diagnostics import assert_lean
from tests.mesh_setup import (
    case,
    error,
    gpt,
    lies_alike,
    make_mesh,
    on,
    orthogonalize,
    polar,
    random_leaves,
    traffic,
    transform,
)

# Code that a user may put around a step.


@case("nnx", "TrainState", "MultiSteps", "apply_if_finite", "scan", "given specs")
def around(what: str) -> dict[str, Any]:
    leaves, host = gpt("hsdp", "Auto", 1, 32, "scanned")
    mesh = leaves["up"].sharding.mesh
    tx = optax.chain(transform(), optax.scale(-0.1))
    if what == "MultiSteps":
        tx = optax.MultiSteps(tx, 1).gradient_transformation()
    if what == "apply_if_finite":
        tx = optax.apply_if_finite(tx, 3)

    def update(gradients: Any) -> Any:
        if what == "given specs":
            specs = jax.tree.map(lambda leaf: leaf.sharding.spec, leaves)
            done = orthogonalize(gradients, Distribution(mesh, specs))
            return jax.tree.map(lambda each: -0.1 * each, done)
        return tx.update(gradients, tx.init(gradients), gradients)[0]

    def by_nnx(tree: Any) -> Any:
        model = nnx.Dict(jax.tree.map(nnx.Param, tree))
        nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, nnx.state(model, nnx.Param))
        return jax.tree.map(lambda new, old: new - old, nnx.to_pure_dict(nnx.state(model)), tree)

    def by_train_state(tree: Any) -> Any:
        state = TrainState.create(apply_fn=None, params=tree, tx=tx)
        return jax.tree.map(lambda a, b: a - b, state.apply_gradients(grads=tree).params, tree)

    def by_scan(tree: Any) -> Any:
        """Takes three steps in `lax.scan`; each reverses the gradient of the step before."""

        def turned(gradients: Any, _: None) -> tuple[Any, Any]:
            updates = update(gradients)
            return jax.tree.map(lambda g: -g, gradients), updates

        return jax.tree.map(lambda updates: updates[2], jax.lax.scan(turned, tree, length=3)[1])

    run = {"nnx": by_nnx, "TrainState": by_train_state, "scan": by_scan}.get(what, update)
    compiled = jax.jit(run).lower(leaves).compile()
    results = compiled(leaves)
    polar_factors = jax.tree.map(lambda update: -10 * np.asarray(update), results)
    return {
        **traffic(compiled),
        "error": error(polar_factors, host),
        "kept": lies_alike(results, leaves),
    }


@case()
def eager() -> dict[str, Any]:
    mesh = make_mesh({"replica": 2, "fsdp": 4})
    host = random_leaves({"out": (32, 32)})
    leaves = on(mesh, host, {"out": P("fsdp")})
    results = orthogonalize(leaves)
    return {"error": error(results, host), "kept": lies_alike(results, leaves)}


@case("Auto", "Explicit")
def vmapped(kind: str) -> dict[str, Any]:
    leaves, host = gpt("2d", kind, layers=1, width=32)

    def run(tree: Any) -> Any:
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), tree)
        return jax.tree.map(lambda x: -x[2], jax.vmap(orthogonalize)(stacked))

    return {"error": error(jax.jit(run)(leaves), host)}


@case("Explicit", ("Explicit", "Auto"), ("Auto", "Explicit"))
def left_to_the_compiler(*kinds: str) -> dict[str, Any]:
    mesh = make_mesh({"model": 2, "fsdp": 4}, *kinds)
    host = random_leaves({"up": (8, 32, 64)})
    tree = on(mesh, host, {"up": P("model", "fsdp")})
    off = functools.partial(orthogonalize, distribute="off")
    runs = {"eager": off, "jit": jax.jit(off), "vmap": jax.jit(jax.vmap(off))}
    return {
        name: {"error": error(results, host), "kept": lies_alike(results, tree)}
        for name, results in ((name, run(tree)) for name, run in runs.items())
    }


@case("first", "last")
def beside_leaves_on_no_mesh(where: str) -> dict[str, Any]:
    """Combines an array on one device with arrays of an Explicit mesh."""
    host = random_leaves(dict.fromkeys(("first", "last"), (32, 64)))
    mesh = make_mesh({"fsdp": 8}, "Explicit")
    placed = on(mesh, host, {"first": P("fsdp"), "last": P("fsdp")})
    tree = placed | {where: jnp.asarray(host[where])}
    off = functools.partial(orthogonalize, distribute="off")
    runs = {"eager": off, "jit": jax.jit(off), "shared": jax.jit(orthogonalize)}
    sharded = "last" if where == "first" else "first"
    return {
        name: {"error": error(results, host), "kept": lies_alike(results[sharded], tree[sharded])}
        for name, results in ((name, run(tree)) for name, run in runs.items())
    }


@case(*itertools.product(("Auto", "Explicit"), ("float32", "bfloat16"), (None, "bfloat16")))
def derivative(kind: str, dtype: str, wire_dtype: str | None) -> dict[str, Any]:
    """Returns the error of a gradient through the update, relative to its largest entry."""
    mesh = make_mesh({"replica": 2, "fsdp": 4}, kind)
    weights, values = random_leaves({"weights": (16, 32), "values": (16, 32)}).values()

    def gradient(distribute: Any, values: Any) -> Any:
        def loss(values: Any) -> Any:
            return (orthogonalize({"up": values}, distribute)["up"] * weights).sum()

        return np.asarray(jax.jit(jax.grad(loss))(values), np.float32)

    values = values.astype(dtype)
    wish = Distribution(mesh, P("fsdp"), wire_dtype=wire_dtype)
    spread = gradient(wish, jax.device_put(values, NamedSharding(mesh, P("fsdp"))))
    alone = gradient("off", values)
    return {"error": float(np.max(np.abs(spread - alone)) / np.max(np.abs(alone)))}


@case()
def no_leaks() -> dict[str, Any]:
    leaves, host = gpt("fsdp", "Auto", 1, 32)
    with jax.checking_leaks():
        return {"error": error(jax.jit(orthogonalize)(leaves), host)}


@case(None, "model")
def vmapped_over_sharded_axis(named: str | None) -> dict[str, Any]:
    return placed_vmap(make_mesh({"model": 2, "fsdp": 4}), named)


def placed_vmap(mesh: Mesh, named: str | None = None) -> dict[str, Any]:
    host = random_leaves({"up": (8, 32, 64)})
    tree = on(mesh, host, {"up": P("model", "fsdp")})
    update = jax.vmap(orthogonalize, spmd_axis_name=named)
    compiled = jax.jit(update).lower(tree).compile()
    return {**traffic(compiled), "error": error(compiled(tree), host)}


@case()
def array_in_the_orthogonalizer() -> dict[str, Any]:
    leaves, host = gpt("hsdp", "Auto", 1, 32, "scanned")
    ones = jnp.ones((1, 1, 1))

    def run(tree: Any) -> Any:
        return orthogonalize(tree, orthogonalizer=lambda matrices: ones * polar(matrices))

    results = jax.jit(run)(leaves)
    return {"error": error(results, host), "kept": lies_alike(results, leaves)}


@case()
def in_a_cache_of_programs() -> dict[str, Any]:
    """Compiles a step in four ways, and in the first way again."""
    leaves, _ = gpt("fsdp", "Auto", 1, 32, "scanned")
    ways: list[dict[str, Any]] = [
        {},
        {"orthogonalizer": lambda matrices: polar(polar(matrices))},
        {"distribute": Distribution(wire_dtype="bfloat16")},
        {"axes": MatrixAxes(rows=-1, cols=-2)},
        {},
    ]
    programs = [jax.jit(functools.partial(orthogonalize, **way)).lower(leaves) for way in ways]
    return {"programs": [program.as_text() for program in programs]}


@case()
def before_shardy() -> dict[str, Any]:
    leaves, host = gpt("hsdp", "Auto", layers=1, width=32)
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        results = jax.jit(orthogonalize)(leaves)
        return {"error": error(results, host), "kept": lies_alike(results, leaves)}
    finally:
        jax.config.update("jax_use_shardy_partitioner", True)


@case()
def training_adds_only_the_exchange() -> dict[str, Any]:
    """Compiles a step of a small model under FSDP, and the same step with AdamW."""
    mesh = make_mesh({"fsdp": 8})
    host = random_leaves({"up": (8, 64, 128), "down": (8, 128, 64)})
    params = on(mesh, host, dict.fromkeys(host, P(None, "fsdp")))
    batch = on(mesh, random_leaves((32, 64)), P("fsdp"))

    def loss(params: Any, batch: Any) -> Any:
        hidden = jnp.tanh(jnp.einsum("bi,lij->lbj", batch, params["up"]))
        return jnp.mean(jnp.einsum("lbj,ljk->bk", hidden, params["down"]) ** 2)

    def compiled(tx: optax.GradientTransformation) -> Any:
        def train(params: Any, state: Any, batch: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(train, donate_argnums=(0, 1)).lower(params, tx.init(params), batch).compile()

    ours, adamw = compiled(transform()), compiled(optax.adamw(0.1))
    weights = sum(leaf.nbytes for leaf in host.values())
    assert_lean(ours, baseline=adamw, count=4, received_bytes=2 * weights / 8 * 7 / 8)
    return {"ours": traffic(ours), "adamw": traffic(adamw)}


@case("NamedShardings", "set_mesh")
def mesh_of_specs(which: str) -> dict[str, Any]:
    """Gets the mesh from the specs or from the context, because `Distribution` has none."""
    mesh = make_mesh({"fsdp": 8})
    host = random_leaves({"up": (32, 64)})
    tree = on(mesh, host, {"up": P("fsdp")})
    specs = NamedSharding(mesh, P("fsdp")) if which == "NamedShardings" else P("fsdp")
    step = jax.jit(lambda tree: orthogonalize(tree, Distribution(specs=specs)))
    with jax.set_mesh(mesh) if which == "set_mesh" else contextlib.nullcontext():
        compiled = step.lower(tree).compile()
    results = compiled(tree)
    return {**traffic(compiled), "error": error(results, host), "kept": lies_alike(results, tree)}


@case()
def placed_by_in_shardings() -> dict[str, Any]:
    """Uses the mesh in context, because types name no mesh; without a context, muon_jax warns."""
    mesh = make_mesh({"fsdp": 8})
    host = random_leaves({"up": (32, 64)})
    sharding = NamedSharding(mesh, P("fsdp"))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        jax.jit(orthogonalize, in_shardings=sharding).lower(host)
        messages = [str(each.message) for each in found]
        with jax.set_mesh(mesh):
            compiled = jax.jit(orthogonalize, in_shardings=sharding).lower(host).compile()
    return {"messages": messages, "warnings": len(found), **traffic(compiled)}


@case("Auto", "Explicit")
def specs_without_an_axis_of_one_device(kind: str) -> dict[str, Any]:
    mesh = make_mesh({"fsdp": 8, "tensor": 1}, kind)
    host = random_leaves({"up": (32, 64)})
    tree = on(mesh, host, {"up": P("fsdp", "tensor")})
    results = jax.jit(lambda tree: orthogonalize(tree, Distribution(mesh, P("fsdp"))))(tree)
    return {"error": error(results, host), "kept": lies_alike(results, tree)}


@case("Auto", "Explicit")
def gradients_that_lie_otherwise(kind: str) -> dict[str, Any]:
    """Gives replicated gradients of sharded parameters, with the specs."""
    mesh = make_mesh({"fsdp": 8}, kind)
    host = random_leaves({"up": (32, 64)})
    params = on(mesh, host, {"up": P("fsdp")})
    gradients = on(mesh, host, {"up": P()})
    results = orthogonalize(gradients, Distribution(mesh, P("fsdp")), params)
    return {"error": error(results, host), "kept": lies_alike(results, params)}


# Inside shard_map.


def inside(layout: str, distribute: Any = None, **options: Any) -> dict[str, Any]:
    leaves, host = gpt(layout, "Auto", layers=1, width=32)
    mesh = leaves["layer_0"]["up"].sharding.mesh
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, leaves)
    told = Distribution(specs=specs) if distribute is None else distribute

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=specs, **options)
    def run(tree: Any) -> Any:
        return orthogonalize(tree, told)

    compiled = jax.jit(run).lower(leaves).compile()
    results = compiled(leaves)
    return {**traffic(compiled), "error": error(results, host), "kept": lies_alike(results, leaves)}


@case(("replicated", True), ("2d", True), ("hsdp", True), ("hsdp", False))
def manual(layout: str, check: bool) -> dict[str, Any]:
    return inside(layout, check_vma=check)


ORTHOGONALIZERS = {
    "newton_schulz": muon_jax.newton_schulz(),
    "in bfloat16": muon_jax.newton_schulz("minimax", dtype="bfloat16"),
    "polar_by_svd": muon_jax.polar_by_svd(),
    "inverse_sqrt": muon_jax.inverse_sqrt(),
    "polar_to": muon_jax.polar_to(1e-3),
}


@case(*ORTHOGONALIZERS)
def manual_with(which: str) -> dict[str, Any]:
    """Runs a loop inside shard_map, which must not change the types of its values."""
    orthogonalizer = ORTHOGONALIZERS[which]
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    host = random_leaves({"up": (3, 32, 64), "out": (32, 32)})
    specs = {"up": P(None, "fsdp", "tensor"), "out": P("tensor")}

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=specs)
    def run(tree: Any) -> Any:
        return orthogonalize(tree, Distribution(specs=specs), orthogonalizer=orthogonalizer)

    results = jax.jit(run)(on(mesh, host, specs))
    alone = jax.jit(lambda tree: orthogonalize(tree, orthogonalizer=orthogonalizer))(host)
    differences = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), results, alone)
    return {"error": max(differences.values())}


@case()
def manual_and_provably_whole() -> dict[str, Any]:
    return inside("replicated", "auto")


@case(True, False)
def manual_along_some_axes(check: bool) -> dict[str, Any]:
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    leaves = {
        "up": ((32, 64), P("fsdp", "tensor")),
        "stack": ((2, 32, 32), P(None, "tensor", "fsdp")),
    }
    host = random_leaves({name: shape for name, (shape, _) in leaves.items()})
    specs = {name: spec for name, (_, spec) in leaves.items()}
    outer = {"up": P("fsdp"), "stack": P(None, None, "fsdp")}
    tree = on(mesh, host, specs)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(outer,),
        out_specs=outer,
        axis_names={"fsdp"},
        check_vma=check,
    )
    def run(tree: Any) -> Any:
        return orthogonalize(tree, Distribution(specs=specs))

    compiled = jax.jit(run).lower(tree).compile()
    results = compiled(tree)
    return {**traffic(compiled), "error": error(results, host), "kept": lies_alike(results, tree)}
