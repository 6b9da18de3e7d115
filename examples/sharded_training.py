"""Trains a model that is sharded over eight devices (FSDP), with Muon and with AdamW.

Run: python examples/sharded_training.py        (under a minute on a CPU)

Shows: parameters and optimizer state sharded over a mesh, and the batch split over it. Muon needs
no setting for this: it reads the mesh from its operands, sends every matrix to one device, which
orthogonalises it, and sends the result back. `collectives` counts the bytes that a step sends.
The mesh has eight virtual CPU devices; on a machine with eight real devices remove the line with
"jax_num_cpu_devices". The model predicts a byte of source code from the 16 bytes before it.
"""

import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_jax
from muon_jax.diagnostics import collectives

STEPS, BATCH, CONTEXT, WIDTH, LAYERS = 200, 256, 16, 128, 3
# Each is the best peak learning rate of 5e-3, 1e-2, 2e-2 and 4e-2.
LEARNING_RATES = {"Muon": 5e-3, "AdamW": 2e-2}


def init_params():
    rng = np.random.default_rng(0)

    def kernel(rows, cols):
        return {"kernel": rng.normal(0, rows**-0.5, (rows, cols)).astype(np.float32)}

    embedding = rng.normal(0, 1, (256, WIDTH // CONTEXT)).astype(np.float32)
    blocks = [
        {"up": kernel(WIDTH, 2 * WIDTH), "down": kernel(2 * WIDTH, WIDTH)} for _ in range(LAYERS)
    ]
    return {"embed": {"embedding": embedding}, "blocks": blocks, "head": kernel(WIDTH, 256)}


def loss_fn(params, windows):
    x = params["embed"]["embedding"][windows[:, :-1]].reshape(-1, WIDTH)
    for block in params["blocks"]:
        normalised = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        x = x + jax.nn.gelu(normalised @ block["up"]["kernel"]) @ block["down"]["kernel"]
    logits = x @ params["head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()


def train(tx, text, mesh):
    """Returns the loss on held-out text, and the bytes that a step sends to each device."""
    sharded = NamedSharding(mesh, P("fsdp"))  # along the first axis of parameters and batches
    params = jax.device_put(init_params(), sharded)
    state = tx.init(params)  # momenta have the same shardings as their parameters

    def train_step(params, state, windows):
        gradients = jax.grad(loss_fn)(params, windows)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    # The step returns the parameters with the shardings that it received.
    stay = jax.tree.map(lambda leaf: leaf.sharding, params)
    train_step = jax.jit(train_step, donate_argnums=(0, 1), out_shardings=(stay, None))

    def sample(rng, low, high):
        starts = rng.integers(low, high - CONTEXT, BATCH)
        windows = text[starts[:, None] + np.arange(CONTEXT + 1)]
        return jax.device_put(windows.astype(np.int32), sharded)

    rng, split = np.random.default_rng(0), 9 * len(text) // 10
    compiled = train_step.lower(params, state, sample(rng, 0, split)).compile()
    received = collectives(compiled).received_bytes
    for _ in range(STEPS):
        params, state = train_step(params, state, sample(rng, 0, split))
        # Virtual CPU devices can deadlock if several steps are in flight.
        jax.block_until_ready(params)
    test = [jax.jit(loss_fn)(params, sample(rng, split, len(text))) for _ in range(8)]
    return float(np.mean(test)), received


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((8,), ("fsdp",), (AxisType.Auto,))
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    for name, optimizer in {"Muon": muon_jax.muon, "AdamW": optax.adamw}.items():
        schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATES[name], STEPS // 10, STEPS)
        loss, received = train(optimizer(schedule, weight_decay=0.1), text, mesh)
        print(f"{name:>5}: loss {loss:.3f} nats per byte after {STEPS} steps")
        print(f"       a step sends {received / 2**20:.2f} MiB to each device")


if __name__ == "__main__":
    main()
