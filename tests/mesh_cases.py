"""Measures all that needs eight devices, in one process, and prints it as JSON.

`test_mesh.py` starts this file and asserts case by case. Eight CPU devices stand for a cluster:
what is counted here (collectives, bytes, operations) does not depend on speed.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from muon_jax._distribution import Distribution
from muon_jax._layout import resolve_layout
from muon_jax._matrix_axes import MatrixAxes
from muon_jax._packing import solve_units
from muon_jax._placement import solve_on_mesh
from muon_jax._state_sharding import on_mesh_of, zero1_shardings, zeros_beside
from muon_jax.diagnostics import assert_lean, collectives

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

CASES: dict[str, Callable[[], Any]] = {}


def case(*choices: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function under its name, once for each choice of its arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for choice in choices or ((),):
            arguments = choice if isinstance(choice, tuple) else (choice,)
            name = " ".join([function.__name__, *map(str, arguments)])
            CASES[name] = functools.partial(function, *arguments)
        return function

    return register


# What is measured. Steps are unrolled, so that the compiler counts every operation; two are enough.

STEPS = 2
A, B, C = 3.4445, -4.7750, 2.0315
LAST_TWO = MatrixAxes(rows=-2, cols=-1)


def polar(wide: Any) -> Any:
    x = wide / (wide**2).sum((-2, -1), keepdims=True) ** 0.5
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def solve(matrices: list[jax.Array]) -> list[jax.Array]:
    """Stacks matrices of one shape, whichever way they lie."""
    wide = [each.mT if each.shape[1] > each.shape[2] else each for each in matrices]
    done: dict[int, jax.Array] = {}
    for shape in sorted({each.shape[1:] for each in wide}):
        places = [place for place, each in enumerate(wide) if each.shape[1:] == shape]
        stops = np.cumsum([len(wide[place]) for place in places])
        stacked = polar(jnp.concatenate([wide[place] for place in places]))
        for place, part in zip(places, jnp.split(stacked, stops[:-1]), strict=True):
            done[place] = part if part.shape == matrices[place].shape else part.mT
    return [done[place] for place in range(len(matrices))]


def cost(rows: int, cols: int) -> float:
    short, long = sorted((rows, cols))
    return STEPS * (4 * short**2 * long + 2 * short**3)


def orthogonalize(
    tree: Any, distribute: Any = "auto", like: Any = None, views: Any = None, solve: Any = solve
) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    views = views or [LAST_TWO] * len(leaves)
    layout = resolve_layout("orthogonalize", tree, views, distribute, like)
    if layout is not None:
        return structure.unflatten(solve_on_mesh(leaves, views, layout, solve, cost))
    units = solve_units([leaf[None] for leaf in leaves], views, solve)
    return structure.unflatten([unit[0] for unit in units])


def step(gradients: Any, momentum: Any, params: Any, distribute: Any = "auto") -> Any:
    momentum = jax.tree.map(lambda m, g: 0.95 * m + g, momentum, gradients)
    ahead = jax.tree.map(lambda m, g: 0.95 * m + g, momentum, gradients)
    return optax.apply_updates(params, orthogonalize(ahead, distribute, params)), momentum


def optimizer() -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(0.95), optax.stateless(lambda u, p: orthogonalize(u, like=p)), optax.scale(-0.1)
    )


# Models, and where they lie.

BOTH = {"qkv": P("fsdp", "tensor"), "up": P("fsdp", "tensor")}
BOTH |= {"out": P("tensor", "fsdp"), "down": P("tensor", "fsdp")}
MEGATRON = {"qkv": P(None, "tensor"), "up": P(None, "tensor")}
MEGATRON |= {"out": P("tensor"), "down": P("tensor")}
LAYOUTS: Mapping[str, tuple[dict[str, int], Any]] = {
    "replicated": ({"data": 8}, dict.fromkeys(BOTH, P())),
    "fsdp": ({"fsdp": 8}, dict.fromkeys(BOTH, P("fsdp"))),
    "tensor": ({"tensor": 8}, MEGATRON),
    "2d": ({"fsdp": 4, "tensor": 2}, BOTH),
    "hsdp": ({"replica": 2, "fsdp": 4}, dict.fromkeys(BOTH, P("fsdp"))),
}


def make_mesh(sizes: Mapping[str, int], *kinds: str) -> Mesh:
    types = [AxisType[kind] for kind in kinds or ("Auto",)]
    types = tuple(types if len(types) == len(sizes) else types * len(sizes))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)


def random_leaves(shapes: Any) -> Any:
    """The same numbers for the same shapes."""
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def on(mesh: Mesh, leaves: Any, specs: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), leaves, specs)


def gpt(layout: str, kind: str, layers: int, width: int, form: str = "apart") -> tuple[Any, Any]:
    """The weights of a small GPT on its mesh, layers apart or scanned, and those on the host."""
    sizes, specs = LAYOUTS[layout]
    shapes = {"qkv": (width, 3 * width), "out": (width, width)}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    if form == "scanned":
        leaves = random_leaves({name: (layers, *shape) for name, shape in shapes.items()})
        specs = {name: P(None, *spec) for name, spec in specs.items()}
    else:
        leaves = random_leaves({f"layer_{index}": shapes for index in range(layers)})
        specs = dict.fromkeys(leaves, specs)
    return on(make_mesh(sizes, kind), leaves, specs), leaves


def error(results: Any, leaves: Any) -> float:
    """The largest difference from one device, over the largest entry."""

    def relative(result: Any, leaf: Any) -> float:
        alone = polar(leaf) if leaf.shape[-2] <= leaf.shape[-1] else polar(leaf.mT).mT
        return float(np.max(np.abs(np.asarray(result) - alone)) / np.max(np.abs(alone)))

    return max(jax.tree.leaves(jax.tree.map(relative, results, leaves)))


def lies_alike(left: Any, right: Any) -> bool:
    return all(
        a.sharding.is_equivalent_to(b.sharding, a.ndim)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def traffic(compiled: Any) -> dict[str, Any]:
    found = collectives(compiled)
    return {
        "count": found.count,
        "bytes": found.received_bytes,
        "nested": found.nested.count,
        "kinds": {kind: each.count for kind, each in found.by_kind().items()},
    }


def flops(compiled: Any) -> float:
    """What the compiler counts, of the costliest branch of a conditional."""
    return compiled.cost_analysis()["flops"]


def local_bytes(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def compilations(run: Callable[[], Any]) -> int:
    """How many programs are compiled while something runs."""
    count = 0

    def listen(event: str, seconds: float, **_: Any) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    run()
    jax.monitoring.unregister_event_duration_listener(listen)
    return count


# One training step of a whole model, as the acceptance criteria say it.


@case(*((layout, kind, "scanned") for layout in LAYOUTS for kind in ("Auto", "Explicit")))
@case(("replicated", "Auto", "apart"), ("2d", "Auto", "apart"), ("hsdp", "Explicit", "apart"))
def whole_step(layout: str, kind: str, form: str) -> dict[str, Any]:
    leaves, host = gpt(layout, kind, 8, 128, form)
    zeros = jax.tree.map(jnp.zeros_like, leaves)
    blank = jax.tree.map(jnp.copy, zeros)
    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(leaves, zeros, blank).compile()
    memory = compiled.memory_analysis()
    updates, momentum = compiled(leaves, zeros, blank)
    return {
        **traffic(compiled),
        "flops": flops(compiled),
        "temporary_bytes": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes == 2 * local_bytes(leaves),
        "error": error(updates, host),
        "kept": lies_alike(updates, leaves) and lies_alike(momentum, leaves),
    }


@case("replicated", "fsdp", "hsdp")
def narrow_wire(layout: str) -> dict[str, Any]:
    leaves, host = gpt(layout, "Auto", 8, 64, "scanned")
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
    leaves, host = gpt("fsdp", "Explicit", count, 64, "scanned")
    compiled = jax.jit(orthogonalize).lower(leaves).compile()
    costs = [cost(*leaf.shape[1:]) for leaf in host.values()]
    return {
        **traffic(compiled),
        "flops": flops(compiled),
        "total": count * sum(costs),
        "largest": max(costs),
    }


# Leaves of every sort, each lot with the view, the mesh and the shardings that it is about.

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
    """Fused and many-axis leaves, sharded across the borders of their parts."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, "Explicit")
    leaves = {
        "heads apart": ((64, 4, 16), P("fsdp", "tensor"), MatrixAxes(0, 2)),
        "heads as one": ((64, 4, 16), P("fsdp", "tensor"), MatrixAxes(0, (1, 2))),
        "q, k, v": ((64, 128), P("fsdp", "tensor"), MatrixAxes(0, 1, split=(64, 24, 40))),
        "rows last": ((4, 64, 16), P("tensor", "fsdp"), MatrixAxes(-1, -2)),
    }
    by_name = [view for _, (_, _, view) in sorted(leaves.items())]
    host = random_leaves({name: shape for name, (shape, _, _) in leaves.items()})
    tree = on(mesh, host, {name: spec for name, (_, spec, _) in leaves.items()})
    results = jax.jit(lambda tree: orthogonalize(tree, views=by_name))(tree)
    alone = jax.jit(lambda tree: orthogonalize(tree, "off", views=by_name))(host)
    differences = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), results, alone)
    return {"error": max(differences.values()), "kept": lies_alike(results, tree)}


@case("replica", "nobody")
def shared_by(whom: str) -> dict[str, Any]:
    """Distribution(axes=...) keeps devices from taking over work along the other axes."""
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
    zeros = jax.tree.map(lambda p, s: jax.device_put(jnp.zeros_like(p), s), params, shardings)
    blank = jax.tree.map(jnp.zeros_like, params)
    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(params, zeros, blank).compile()
    updates, momentum = compiled(params, zeros, blank)
    return {
        **traffic(compiled),
        "error": error(updates, host),
        "kept": lies_alike(updates, params)
        and all(
            momentum[name].sharding.is_equivalent_to(shardings[name], 2) for name in ("out", "odd")
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
    """The momentum lies in one sharding and the parameter in another."""
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


@case("Auto", "Explicit")
def second_step(kind: str) -> dict[str, Any]:
    leaves, _ = gpt("hsdp", kind, layers=1, width=32)
    tx = optimizer()
    state = on_mesh_of(leaves, (tx.init(leaves), jnp.zeros([], jnp.int32)))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any) -> Any:
        momentum, count = state
        updates, momentum = tx.update(params, momentum, params)
        return optax.apply_updates(params, updates), (momentum, count + 1)

    with jax.set_mesh(leaves["layer_0"]["up"].sharding.mesh):
        zeros = jax.jit(lambda tree: jax.tree.map(zeros_beside, tree))(leaves)
    kept = lies_alike(zeros, leaves)
    leaves, state = train(leaves, state)
    return {"compilations": compilations(lambda: train(leaves, state)), "kept": kept}


# Everything around a step that a user may put there.


@case("nnx", "TrainState", "MultiSteps", "apply_if_finite", "scan", "given specs")
def around(what: str) -> dict[str, Any]:
    leaves, host = gpt("hsdp", "Auto", 1, 32, "scanned")
    mesh = leaves["up"].sharding.mesh
    tx = optimizer()
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
        """Three steps, each on the gradient of the one before, turned round."""

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


@case()
def vmapped_over_sharded_axis() -> dict[str, Any]:
    return placed_vmap(make_mesh({"model": 2, "fsdp": 4}))


def placed_vmap(mesh: Mesh) -> dict[str, Any]:
    host = random_leaves({"up": (8, 32, 64)})
    tree = on(mesh, host, {"up": P("model", "fsdp")})
    compiled = jax.jit(jax.vmap(orthogonalize)).lower(tree).compile()
    return {**traffic(compiled), "error": error(compiled(tree), host)}


@case()
def array_in_the_orthogonalizer() -> dict[str, Any]:
    leaves, host = gpt("hsdp", "Auto", 1, 32, "scanned")
    ones = jnp.ones((1, 1, 1))

    def run(tree: Any) -> Any:
        return orthogonalize(tree, solve=lambda matrices: [ones * each for each in solve(matrices)])

    results = jax.jit(run)(leaves)
    return {"error": error(results, host), "kept": lies_alike(results, leaves)}


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
    """A whole step of a small model under FSDP, beside the same step with AdamW."""
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

    ours, adamw = compiled(optimizer()), compiled(optax.adamw(0.1))
    weights = sum(leaf.nbytes for leaf in host.values())
    assert_lean(ours, baseline=adamw, count=2, received_bytes=2 * weights / 8 * 7 / 8)
    return {"ours": traffic(ours), "adamw": traffic(adamw)}


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


# Wrong input: every one of these must end in one clear error.


@case(True, False)
def refused_without_specs_inside(check: bool) -> None:
    inside("fsdp", "auto", check_vma=check)


@case()
def refused_varying_otherwise() -> None:
    inside("fsdp", Distribution(specs=P()))


@case()
def refused_vmap_over_explicit_axis() -> None:
    placed_vmap(make_mesh({"model": 2, "fsdp": 4}, "Explicit"))


WRONG_SPECS = {
    "does not divide": P(None, "data"),
    "too long": P(None, None, "data"),
    "unknown axis": P("model"),
    "named twice": P("data", "data"),
    "open": P(P.UNCONSTRAINED),
    "no prefix": {"other": P("data")},
    "lies otherwise": P("data"),
}


@case(*WRONG_SPECS)
def refused_specs(which: str) -> None:
    mesh = make_mesh({"data": 8})
    tree = {"mlp": {"up": jax.device_put(np.ones((64, 100)), NamedSharding(mesh, P()))}}
    wish = Distribution(mesh, WRONG_SPECS[which])
    orthogonalize(tree, wish) if which == "lies otherwise" else jax.jit(
        lambda tree: orthogonalize(tree, wish)
    )(tree)


@case()
def refused_two_meshes() -> None:
    mesh, other = make_mesh({"data": 8}), make_mesh({"data": 4, "model": 2})
    orthogonalize(
        on(mesh, {"a": np.ones((8, 8))}, {"a": P()}) | on(other, {"b": np.ones((8, 8))}, {"b": P()})
    )


@case()
def refused_axes() -> None:
    mesh = make_mesh({"data": 8})
    orthogonalize(on(mesh, {"a": np.ones((8, 8))}, {"a": P()}), Distribution(axes="model"))


@case()
def refused_no_mesh() -> None:
    orthogonalize({"a": jnp.ones((8, 8))}, Distribution(specs=P()))


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as problem:
        return {"raised": type(problem).__name__, "message": str(problem)}


if __name__ == "__main__":
    chosen = [name for name in CASES if all(word in name for word in sys.argv[1:])]
    print(json.dumps({name: outcome(CASES[name]) for name in chosen}, indent=1))
