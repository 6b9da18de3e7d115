"""Helpers of the cases on eight devices: models on meshes, updates, and their measurements.

The cases use only the public API. Newton-Schulz has two steps, no loop and whole stacks here, so
that the compiler counts every operation.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_jax
from muon_jax import MatrixAxes
from muon_jax.diagnostics import collectives

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


STEPS = 2
A, B, C = 3.4445, -4.7750, 2.0315
LAST_TWO = MatrixAxes(rows=-2, cols=-1)
ONE_STACK = 2**40


def polar(wide: Any) -> Any:
    x = wide / (wide**2).sum((-2, -1), keepdims=True) ** 0.5
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def cost(rows: int, cols: int) -> float:
    short, long = sorted((rows, cols))
    return STEPS * (4 * short**2 * long + 2 * short**3)


def transform(
    distribute: Any = "auto",
    momentum: float = 0.95,
    axes: Any = LAST_TWO,
    orthogonalizer: Any = polar,
    precondition: Any = None,
) -> optax.GradientTransformation:
    return muon_jax.scale_by_muon(
        momentum=momentum,
        orthogonalizer=orthogonalizer,
        scale="none",
        axes=axes,
        chunk_bytes=ONE_STACK,
        distribute=distribute,
        precondition=precondition,
    )


def orthogonalize(tree: Any, distribute: Any = "auto", like: Any = None, **arguments: Any) -> Any:
    """Returns the update without momentum for a tree of gradients."""
    tx = transform(distribute, momentum=0.0, **arguments)
    return tx.update(tree, tx.init(tree), like)[0]


# Models and their shardings.

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
    """Returns random leaves; equal shapes get equal numbers."""
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def on(mesh: Mesh, leaves: Any, specs: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), leaves, specs)


def gpt(layout: str, kind: str, layers: int, width: int, form: str = "apart") -> tuple[Any, Any]:
    """Returns the weights of a small GPT on its mesh and on the host; layers apart or scanned."""
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
    """Returns the largest difference from one device, divided by the largest entry."""

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
    """Returns the compiler's count of FLOPs, with the costliest branch of each conditional."""
    return compiled.cost_analysis()["flops"]


def local_bytes(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def compilations(run: Callable[[], Any]) -> int:
    """Counts the programs that are compiled while a function runs."""
    count = 0

    def listen(event: str, seconds: float, **_: Any) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    run()
    jax.monitoring.unregister_event_duration_listener(listen)
    return count
