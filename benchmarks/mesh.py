"""One optimizer step on eight devices, ours and optax's: work, wire and memory of every layout.

python -m benchmarks.mesh                      # 8 layers of width 512
python -m benchmarks.mesh --width 256

All figures are read off compiled programs and plans, which are the same on any machine. Nothing is
run or timed: eight virtual devices share the cores of one CPU and copy in its memory what would
travel, so that their times say nothing about eight devices with a network between them.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Less work for LLVM alone: the partitioned program, of which all figures are, stays the same.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import muon_jax
from benchmarks.measuring import conditions, table
from benchmarks.mesh_bounds import COLLECTIVES, SHARDS_AND_REPLICAS, TEMPORARY_SHARE, wire_bytes
from benchmarks.models import LAYOUTS, Model, abstract, fused_transformer, make_mesh, place
from muon_jax.diagnostics import collectives
from muon_jax.mesh._slots import plan_slots

MATRIX = muon_jax.MatrixAxes(0, 1)
ONE_STACK = 2**40
"""Bytes of a chunk: no loop is left, of which XLA would count the body once."""

PRODUCTS = muon_jax.newton_schulz("keller", form="direct", normalization="frobenius")
"""The products of optax's default, step by step: what differs is where they are done."""

DEVICES = 8
BOUNDS = {
    "replicated": "replicated",
    "fsdp": "fsdp",
    "tensor": "tensor",
    "fsdp × tensor": "2d",
    "HSDP": "hsdp",
}
"""The layouts that are compared, and their names in `benchmarks.mesh_bounds`."""


@dataclass(frozen=True)
class Options:
    """The tree."""

    layers: int = 8
    width: int = 512


@dataclass(frozen=True)
class Cost:
    """What one step costs each device.

    Attributes:
        flops: of the busiest device.
        received: bytes.
        kinds: how many collectives of each kind.
        nested: how many of them stand in a loop or a branch.
        temporaries: bytes beside inputs and outputs.
    """

    flops: float
    received: float
    kinds: Mapping[str, int]
    nested: int
    temporaries: int


def optimizers() -> dict[str, optax.GradientTransformation]:
    def ours(wire_dtype: Any) -> optax.GradientTransformation:
        muon = muon_jax.scale_by_muon(
            orthogonalizer=PRODUCTS,
            scale="keller",
            axes=MATRIX,
            chunk_bytes=ONE_STACK,
            distribute=muon_jax.Distribution(wire_dtype=wire_dtype),
        )
        return optax.chain(muon, optax.scale_by_learning_rate(0.02))

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(0, 1), params)

    return {
        "optax.contrib.muon": optax.contrib.muon(0.02, muon_weight_dimension_numbers=matrices),
        "muon_jax": ours(None),
        "muon_jax, bf16 wire": ours(jnp.bfloat16),
    }


def cost_of_step(tx: optax.GradientTransformation, layout: str, options: Options) -> Cost:
    """Compiles one donated update, applied to the parameters, for a layout."""
    lies = LAYOUTS[layout]
    mesh = make_mesh(lies, jax.devices())

    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = abstract(fused_transformer(options.layers, options.width))
    params, state = place((params, jax.eval_shape(tx.init, params)), mesh, lies)
    stay = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    compiled = (
        jax.jit(step, donate_argnums=(1, 2), out_shardings=stay)
        .lower(params, state, params)
        .compile()
    )
    found, memory = collectives(compiled), compiled.memory_analysis()
    return Cost(
        flops=(compiled.cost_analysis() or {})["flops"],
        received=found.received_bytes,
        kinds={kind: each.count for kind, each in found.by_kind().items()},
        nested=found.nested.count,
        temporaries=memory.temp_size_in_bytes if memory else 0,
    )


def rows_of_layout(layout: str, costs: Mapping[str, Cost], weights: float) -> Iterator[tuple]:
    expected = wire_bytes(weights, *SHARDS_AND_REPLICAS[BOUNDS[layout]])
    for name, cost in costs.items():
        formula = {"muon_jax": expected, "muon_jax, bf16 wire": expected / 2}.get(name)
        yield (
            name_of(layout),
            name,
            f"{cost.flops / 1e9:.1f}",
            mebibytes(cost.received),
            "–" if formula is None else mebibytes(formula),
            ", ".join(f"{count} {kind}" for kind, count in cost.kinds.items()) or "none",
            cost.nested,
            mebibytes(cost.temporaries),
        )


def verdicts(layout: str, costs: Mapping[str, Cost], weights: float) -> tuple:
    """Holds a layout to what was asked of it."""
    theirs, ours, narrow = costs.values()
    wire = ours.received / wire_bytes(weights, *SHARDS_AND_REPLICAS[BOUNDS[layout]])
    memory = ours.temporaries / (weights * TEMPORARY_SHARE[BOUNDS[layout]])
    return (
        name_of(layout),
        held(ours.flops <= theirs.flops, f"{ours.flops / theirs.flops:.2f}"),
        held(wire <= 1.05, f"{wire:.3f}"),
        held(narrow.received <= ours.received / 2, f"{narrow.received / ours.received:.2f}"),
        held(memory <= 1.25, f"{memory:.2f}"),
        held(
            ours.kinds == COLLECTIVES[BOUNDS[layout]] and not ours.nested,
            ", ".join(f"{count} {kind}" for kind, count in COLLECTIVES[BOUNDS[layout]].items()),
        ),
    )


def held(good: bool, shown: str) -> str:
    return f"{shown} {'✓' if good else '✗'}"


def name_of(layout: str) -> str:
    return " × ".join(f"{axis}={size}" for axis, size in LAYOUTS[layout].sizes(DEVICES).items())


def mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f}"


# Meshes that no machine at hand has: the plan alone, which is pure Python.


def llama() -> Model:
    """8B (Grattafiori et al. 2024, "The Llama 3 Herd of Models")."""
    width, keys, hidden = 4096, 1024, 14336
    shapes = {"query": (width, width), "key": (width, keys), "value": (width, keys)}
    shapes |= {"out": (width, width), "gate": (width, hidden), "up": (width, hidden)}
    return {f"layer_{layer}": shapes | {"down": (hidden, width)} for layer in range(32)}


DEEPER = (
    ("width 512, 6 layers", fused_transformer(6, 512), 8),
    ("GPT-2 124M", fused_transformer(12, 768), 32),  # Radford et al. 2019
    ("Llama 3 8B", llama(), 128),
    ("Llama 3 8B", llama(), 256),
)


def row_of_plan(name: str, model: Model, devices: int) -> tuple:
    """Plans an update of leaves that are sharded along their first axis."""
    stacks = Counter(shape for layer in model.values() for shape in layer.values())
    entries = np.array([math.prod(shape) for shape in stacks])
    weights = float(entries @ list(stacks.values()))
    row = (name, devices, sum(stacks.values()))
    for orthogonalizer in (PRODUCTS, muon_jax.newton_schulz()):
        costs = [orthogonalizer.flops(*shape) for shape in stacks]
        slots = plan_slots(list(stacks.values()), costs, devices)
        work = np.array(costs) @ [stack.counts for stack in slots]
        sent = 2 * float(entries @ [stack.each for stack in slots]) * (devices - 1) / devices
        formula = wire_bytes(weights, devices, 1)
        row += (f"{work.max() / work.mean():.2f}", f"{sent / formula:.2f}")
    return row


def main(options: Options) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    weights = 4 * 12 * options.width**2 * options.layers
    costs = {
        layout: {name: cost_of_step(tx, layout, options) for name, tx in optimizers().items()}
        for layout in BOUNDS
    }
    print(
        f"{options.layers} layers of width {options.width}, {mebibytes(weights)} MiB of float32 "
        f"weights, one update. {conditions()}\n"
    )
    print("For each device:\n")
    header = ("mesh", "", "GFLOP", "wire MiB", "formula", "collectives", "nested", "temporary MiB")
    print(
        table(header, [row for each in costs for row in rows_of_layout(each, costs[each], weights)])
    )
    print("\nmuon_jax over what it may cost at most:\n")
    header = ("mesh", "FLOPs / optax's ≤ 1", "wire / formula ≤ 1.05", "bf16 wire / wire ≤ 0.5")
    header += ("temporaries / sketch ≤ 1.25", "collectives, none nested")
    print(table(header, [verdicts(each, costs[each], weights) for each in costs]))
    print("\nPlans for FSDP over more devices:\n")
    header = ("model", "devices", "matrices", "busiest / mean", "wire / formula")
    header += ("busiest / mean, default", "wire / formula, default")
    print(table(header, [row_of_plan(*each) for each in DEEPER]))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
