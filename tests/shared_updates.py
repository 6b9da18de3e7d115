"""Makes two updates on eight devices, and writes the shards of every device."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from processes import join

import muon_jax

LAYOUTS = {
    "fsdp4×tensor2": ((4, 2), ("fsdp", "tensor"), P("fsdp", "tensor")),
    "replica2×fsdp4": ((2, 4), ("replica", "fsdp"), P("fsdp")),
    "data8": ((8,), ("data",), P()),
}
SHAPES = {"up": (64, 128), "down": (128, 64), "query": (64, 64), "norm": (64,)}


def updated(layout: str) -> Any:
    """Returns the parameters after two steps."""
    sizes, axes, spec = LAYOUTS[layout]
    mesh = jax.make_mesh(sizes, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        whole = rng.standard_normal(shape).astype(np.float32)
        sharding = NamedSharding(mesh, spec if len(shape) > 1 else P())
        return jax.make_array_from_callback(shape, sharding, lambda index: whole[index])

    params, gradients = ({name: draw(shape) for name, shape in SHAPES.items()} for _ in range(2))
    tx = muon_jax.muon(0.1)

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state, gradients)
    return params


def shards(layout: str, params: Any) -> dict[str, np.ndarray]:
    """Returns the shards of this process's devices, by position in the whole array."""
    return {
        f"{layout} {name} {shard.index} {shard.replica_id}": np.asarray(shard.data)
        for name, array in params.items()
        for shard in array.addressable_shards
    }


if __name__ == "__main__":
    folder, *group = sys.argv[1:]
    join(group)
    held = [shards(layout, updated(layout)) for layout in LAYOUTS]
    file = Path(folder, f"{jax.process_index()}_of_{jax.process_count()}.npz")
    np.savez(file, **{name: data for each in held for name, data in each.items()})
