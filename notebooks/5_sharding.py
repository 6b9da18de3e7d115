# %% [markdown]
# # Sharding
#
# A matrix must be whole to be orthogonalised, but on a mesh its shards are on different devices. The library assigns every matrix to one device: shards are sent to the owner once, results are sent back once, and every device does an equal part of the work. This needs no argument. The notebook shows the communication on eight virtual devices of one CPU.

# %% tags=["remove-cell"]
# Installs missing packages.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needed = {
    "muon_jax": ".." if Path("../pyproject.toml").exists() else "muon-jax",
    "matplotlib": "matplotlib",
}
missing = [needed[name] for name in needed if find_spec(name) is None]
if missing:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *missing], check=True)

# %%
import functools

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import muon_jax
from muon_jax.diagnostics import assert_lean, collectives

jax.config.update("jax_num_cpu_devices", 8)  # before the first array
if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")
assert len(jax.devices()) == 8

# %% [markdown]
# ## A model on a mesh
#
# Eight blocks of a transformer's matrices, sharded over four devices one way (FSDP) and two the other (tensor parallelism).

# %%
WIDTH, LAYERS = 64, 8
SPECS = {
    "qkv": PartitionSpec("fsdp", "tensor"),
    "out": PartitionSpec("tensor", "fsdp"),
    "up": PartitionSpec("fsdp", "tensor"),
    "down": PartitionSpec("tensor", "fsdp"),
}
SHAPES = {
    "qkv": (WIDTH, 3 * WIDTH),
    "out": (WIDTH, WIDTH),
    "up": (WIDTH, 4 * WIDTH),
    "down": (4 * WIDTH, WIDTH),
}
mesh = jax.make_mesh(
    (4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2
)


def draw(layer, name):
    key = jax.random.key(10 * layer + len(name))
    return jax.random.normal(key, SHAPES[name]) / 8


alone = {
    f"layer_{i}": {name: {"kernel": draw(i, name)} for name in SHAPES}
    for i in range(LAYERS)
}
shardings = {
    f"layer_{i}": {
        name: {"kernel": NamedSharding(mesh, SPECS[name])} for name in SHAPES
    }
    for i in range(LAYERS)
}
params = jax.device_put(alone, shardings)
for name in SHAPES:
    kernel = params["layer_0"][name]["kernel"]
    shard = kernel.addressable_shards[0].data.shape
    print(
        f"{name:5} {kernel.shape} by {kernel.sharding.spec}: shards of {shard}"
    )

# %% [markdown]
# ## The communication of a step
#
# `collectives` reads a compiled step. AdamW works entry by entry and sends nothing. Muon adds one collective in each direction for each shape and each mesh axis that shards it, for any number of layers.

# %%


def compiled_step(tx):
    @functools.partial(jax.jit, out_shardings=shardings)
    def step(gradients, state, params):
        updates, _ = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates)

    return step.lower(params, jax.jit(tx.init)(params), params).compile()


adamw = compiled_step(optax.adamw(1e-3))
muon = compiled_step(muon_jax.muon(1e-3))
print("AdamW:", collectives(adamw))
print("Muon: ", collectives(muon))

# %% [markdown]
# Use the same call in a test of your own training step to detect changes that add communication. Each device receives its shards of the momentum and of the update a little more than once each, because every matrix crosses two mesh axes.

# %%
shard_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(alone)) / 8
assert_lean(muon, count=16, received_bytes=2.5 * shard_bytes, baseline=adamw)
print(f"a shard of all weights: {shard_bytes / 1024:.0f} KiB")
print(f"received: {collectives(muon).received_bytes / 1024:.0f} KiB")

# %% [markdown]
# ## The result equals that of one device

# %%
tx = muon_jax.muon(1e-3)
by_eight = muon(params, jax.jit(tx.init)(params), params)
by_one = optax.apply_updates(alone, tx.update(alone, tx.init(alone), alone)[0])
gap = jax.tree.map(
    lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
    by_eight,
    by_one,
)
print(
    f"largest difference of a weight: {max(jax.tree.leaves(gap)):.1e}, of steps of {2e-4:.0e}"
)
assert max(jax.tree.leaves(gap)) < 2e-5
assert jax.tree.map(lambda leaf: leaf.sharding, by_eight) == shardings

# %% [markdown]
# ## Options
#
# `Distribution` gives the sharding of parameters where JAX cannot know it, or trades precision for bytes: with `wire_dtype=jnp.bfloat16` TPUs and GPUs send half of the bytes. They do so by default where products round to bfloat16 anyway. `distribute="off"` leaves the placement to XLA, which multiplies shards and sends partial products in every step of the iteration.

# %%
choices = {
    "owners (the default)": muon,
    "left to XLA": compiled_step(muon_jax.muon(1e-3, distribute="off")),
}
found = {name: collectives(step) for name, step in choices.items()}
figure, (counts, traffic) = plt.subplots(1, 2, figsize=(7.2, 2.2), sharey=True)
counts.barh(list(found), [each.count for each in found.values()])
counts.set_title("collectives in a step")
traffic.barh(
    list(found),
    [each.received_bytes / 1024 for each in found.values()],
    color="C1",
)
traffic.set_title("KiB to each device")
counts.invert_yaxis()
for name, each in found.items():
    print(
        f"{name}: {each.count} collectives, {each.received_bytes / 1024:.0f} KiB"
    )

# %%
default, left = found.values()
assert left.received_bytes > 5 * default.received_bytes
assert left.count > 5 * default.count
