# %% [markdown]
# # Muon in ten minutes
#
# A small network learns to guess the next byte of Python's own standard library from the sixteen bytes before it. This notebook shows which optimizer trains each parameter, trains the network, and compares with AdamW. Everything runs on a CPU in under a minute.

# %% tags=["remove-cell"]
# Installs missing packages.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needed = {
    "muon_jax": ".." if Path("../pyproject.toml").exists() else "muon-jax",
    "flax": "flax",
    "matplotlib": "matplotlib",
}
missing = [needed[name] for name in needed if find_spec(name) is None]
if missing:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *missing], check=True)

# %%
import sysconfig

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import muon_jax

if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")

files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
held_out, training = text[:100_000], text[100_000:]
print(f"{len(files)} files, {len(text):,} bytes")

# %% [markdown]
# ## A model
#
# An embedding, two dense layers and an output head, in Flax NNX. The library also takes Linen, Equinox, Haiku or a dictionary of arrays, because it uses only names and shapes.

# %%
CONTEXT, WIDTH, HIDDEN = 16, 24, 192


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH, rngs=rngs)
        self.up = nnx.Linear(CONTEXT * WIDTH, HIDDEN, rngs=rngs)
        self.mix = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, 256, rngs=rngs)

    def __call__(self, contexts):
        x = self.embed(contexts).reshape(len(contexts), -1)
        x = nnx.gelu(self.up(x))
        return self.head(nnx.gelu(self.mix(x)))


# %% [markdown]
# ## What will happen to it
#
# `explain` shows before training where each parameter goes and why. Embedding, head and biases go to AdamW, because their rows or entries have separate meanings. Only the two matrices in the middle map one hidden state to another.

# %%
model = Model(nnx.Rngs(0))
params = nnx.state(model, nnx.Param)
print(muon_jax.explain(params, muon_jax.muon(1e-3)))

labels = muon_jax.label_params(nnx.to_pure_dict(params))
muons = [name for name in labels if labels[name].get("kernel") == "muon"]
assert sorted(muons) == ["mix", "up"]

# %% [markdown]
# ## Training
#
# One learning rate is enough for the whole model, because Muon's updates have about the root mean square of AdamW's. The argument is the learning rate of the matrices. AdamW has 2.5 times that rate, the output head 5 times and the embedding 20 times. Only matrices decay.

# %%
STEPS, BATCH = 300, 256


def loss_of(model, windows):
    logits = model(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, windows[:, -1]
    ).mean()


@nnx.jit
def step(model, optimizer, windows):
    loss, gradients = nnx.value_and_grad(loss_of)(model, windows)
    optimizer.update(model, gradients)
    return loss


evaluate = nnx.jit(loss_of)


def windows_of(bytes_, count, seed):
    starts = np.random.default_rng(seed).integers(
        0, len(bytes_) - CONTEXT - 1, count
    )
    return jnp.asarray(
        bytes_[starts[:, None] + np.arange(CONTEXT + 1)], jnp.int32
    )


def train(make, rate):
    model = Model(nnx.Rngs(0))
    schedule = optax.warmup_cosine_decay_schedule(0, rate, 20, STEPS)
    optimizer = nnx.Optimizer(
        model, make(schedule, weight_decay=0.1), wrt=nnx.Param
    )
    losses = [
        step(model, optimizer, windows_of(training, BATCH, i))
        for i in range(STEPS)
    ]
    return np.array(losses), float(
        evaluate(model, windows_of(held_out, 4096, 0))
    )


losses, final = train(muon_jax.muon, 1e-2)
print(
    f"held-out loss {final:.3f} nats per byte; a guess at random has {np.log(256):.3f}"
)
assert final < 3

# %% [markdown]
# ## Comparison with AdamW
#
# A comparison is fair only if both optimizers choose among the same number of learning rates, so each gets the same four. At its best rate Muon ends lower than AdamW at its best, though not at every rate. This is one seed of one small model. [The page of claims](../docs/claims.md) has more.

# %%
RATES = [3e-3, 1e-2, 3e-2, 1e-1]
runs = {
    name: {rate: train(make, rate) for rate in RATES}
    for name, make in {"Muon": muon_jax.muon, "AdamW": optax.adamw}.items()
}

figure, (curves, finals) = plt.subplots(1, 2)
for name, of_rate in runs.items():
    best = min(of_rate, key=lambda rate: of_rate[rate][1])
    smooth = np.convolve(of_rate[best][0], np.ones(10) / 10, "valid")
    curves.plot(
        np.arange(len(smooth)) + 10, smooth, label=f"{name}, rate {best:g}"
    )
    finals.plot(RATES, [of_rate[rate][1] for rate in RATES], "o-", label=name)
curves.set(
    title="training loss, best rate of each",
    xlabel="step",
    ylabel="nats per byte",
)
finals.set(
    title="held-out loss at the end", xlabel="peak learning rate", xscale="log"
)
curves.legend()
finals.legend()
for rate in RATES:
    print(
        f"rate {rate:g}: Muon {runs['Muon'][rate][1]:.3f}, AdamW {runs['AdamW'][rate][1]:.3f}"
    )

# %%
best = {
    name: min(final for _, final in of_rate.values())
    for name, of_rate in runs.items()
}
assert best["Muon"] < best["AdamW"]
for of_rate in runs.values():  # the best rate is not at the edge
    assert min(of_rate, key=lambda rate: of_rate[rate][1]) in RATES[1:-1]
