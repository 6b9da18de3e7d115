"""Trains a small model on a mesh and saves it, or restores it on another mesh and trains on.

python tests/remeshing.py save FOLDER fsdp
python tests/remeshing.py restore FOLDER tensor

The number of devices is fixed when JAX starts, so each mesh needs its own process. With the further
arguments ADDRESS, COUNT and INDEX, this process is one of COUNT processes that share a mesh.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from matrices import gaussian
from orbax.checkpoint import v1 as ocp
from processes import join

import muon_jax

STATE, SAVED, NEXT = "state", "saved.msgpack", "next.msgpack"
STEPS = 3

# Another order of summation rounds differently; Newton-Schulz amplifies errors up to 500 times.
ROUNDING = 1e-4

MODEL = {
    "embed": {"embedding": gaussian(16, 8)},
    "blocks": {
        "attention": {"query": {"kernel": gaussian(2, 8, 8, 4)}},
        "mlp": {"kernel": gaussian(2, 8, 16), "bias": gaussian(2, 16)},
    },
    "head": {"kernel": gaussian(8, 16)},
}

TX = muon_jax.muon(0.1, momentum_dtype="bfloat16")


def sharding(layout: str, shape: tuple[int, ...]) -> jax.NamedSharding:
    """Shards one axis over all devices: "fsdp" the first that divides, "tensor" the last."""
    devices = jax.device_count()
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    axes = [axis for axis, size in enumerate(shape) if size % devices == 0]
    spec: list[str | None] = [None] * len(shape)
    if axes:
        spec[axes[0 if layout == "fsdp" else -1]] = "devices"
    return jax.NamedSharding(mesh, P(*spec))


def placed(tree: Any, layout: str) -> Any:
    """Puts host arrays, whole in every process, on the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            x.shape, sharding(layout, x.shape), lambda part, x=x: x[part]
        ),
        tree,
    )


def begun() -> Any:
    params = jax.tree.map(jnp.asarray, MODEL)
    return jax.tree.map(np.asarray, {"params": params, "optimizer": TX.init(params)})


@partial(jax.jit, donate_argnums=0)
def step(state: Any) -> Any:
    params = state["params"]
    gradients = jax.tree.map(lambda leaf: jnp.sin(3 * leaf), params)
    updates, optimizer = TX.update(gradients, state["optimizer"], params)
    return {"params": optax.apply_updates(params, updates), "optimizer": optimizer}


def save(folder: Path, layout: str) -> None:
    state = placed(begun(), layout)
    for _ in range(STEPS):
        state = step(state)
    ocp.save(folder / STATE, state)
    write(folder / SAVED, whole(state))
    write(folder / NEXT, whole(step(state)))


def restore(folder: Path, layout: str) -> None:
    """Restores each part to its device in `layout`, and compares it with the saved one."""
    saved = read(folder / SAVED)
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(layout, x.shape)), saved
    )
    restored = ocp.load(folder / STATE, wanted)
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == sharding(layout, leaf.shape), leaf.sharding
    assert_same_bits(whole(restored), saved)
    resumed, unbroken = whole(step(restored)), whole(step(placed(saved, layout)))
    assert_same_bits(resumed, unbroken)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=ROUNDING),
        resumed["params"],
        read(folder / NEXT)["params"],
    )


def whole(state: Any) -> Any:
    """Returns host arrays, also in a process with a part of the devices."""
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(state, tiled=True))


def write(file: Path, state: Any) -> None:
    if jax.process_index() == 0:
        file.write_bytes(flax.serialization.to_bytes(state))


def read(file: Path) -> Any:
    return flax.serialization.from_bytes(begun(), file.read_bytes())


def assert_same_bits(actual: Any, expected: Any) -> None:
    def compare(actual: np.ndarray, expected: np.ndarray) -> None:
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == expected.tobytes()

    jax.tree.map(compare, actual, expected)


if __name__ == "__main__":
    what, where, how, *group = sys.argv[1:]
    join(group)
    {"save": save, "restore": restore}[what](Path(where), how)
    print(f"{what} on {jax.device_count()} devices of {jax.process_count()} processes")
