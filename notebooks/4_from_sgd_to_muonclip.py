# %% [markdown]
# # From SGD to MuonClip
#
# Each optimizer corrects a weakness of the previous one. One small problem shows this: fit a matrix $W$ so that $A W B \approx C$, where $A$ and $B$ stretch some directions a hundred times more than others. Few directions then dominate the gradient $A^\top (AWB - C) B^\top$, as in gradients of real layers.

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
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import muon_jax
from muon_jax import attention, diagnostics

if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")

SIZE, STEPS = 32, 200
AXES = muon_jax.MatrixAxes(rows=0, cols=1)


def stretching(seed):
    left, right = (
        jnp.linalg.qr(jax.random.normal(key, (SIZE, SIZE)))[0]
        for key in jax.random.split(jax.random.key(seed))
    )
    return left * jnp.geomspace(1, 1e-2, SIZE) @ right


A, B = stretching(0), stretching(1)
TARGET = jax.random.normal(jax.random.key(2), (SIZE, SIZE))


def loss_of(weights):
    return jnp.mean(jnp.square(A @ (weights - TARGET) @ B))


gradient = jax.grad(loss_of)(jnp.zeros((SIZE, SIZE)))
print(
    f"of {SIZE} directions, {float(diagnostics.stable_rank(gradient)):.1f} carry the gradient"
)
assert diagnostics.stable_rank(gradient) < 4

# %% [markdown]
# ## The optimizers
#
# | | the step | what it corrects |
# |---|---|---|
# | SGD | −η G | |
# | momentum | −η M, with M ← μM + G | noise and zigzag |
# | Adagrad | −η G / √ΣG² | one learning rate for all entries |
# | RMSProp | −η G / √(mean of G²) | learning rates that only fall |
# | Adam | −η M / √(mean of G²) | both at once |
# | AdamW | … − ηλW | decay that Adam's denominator would distort |
# | Muon | −η U Vᵀ, with M = U S Vᵀ | few directions dominate M |
#
# Every optimizer chooses among the same learning rates, and all follow a cosine to zero.

# %%
OPTIMIZERS = {
    "SGD": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "Adagrad": optax.adagrad,
    "RMSProp": optax.rmsprop,
    "Adam": optax.adam,
    "AdamW": functools.partial(optax.adamw, weight_decay=1e-4),
    "Muon": lambda rate: optax.chain(
        muon_jax.scale_by_muon(axes=AXES), optax.scale_by_learning_rate(rate)
    ),
}
RATES = jnp.asarray([0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000])


def curve(make, rate):
    tx = make(optax.cosine_decay_schedule(rate, STEPS))

    def step(carry, _):
        weights, state = carry
        loss, grads = jax.value_and_grad(loss_of)(weights)
        updates, state = tx.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), loss

    start = jnp.zeros((SIZE, SIZE))
    return jax.lax.scan(step, (start, tx.init(start)), None, STEPS)[1]


best = {}
for name, make in OPTIMIZERS.items():
    losses = np.asarray(
        jax.jit(jax.vmap(functools.partial(curve, make)))(RATES)
    )
    chosen = np.nanargmin(losses[:, -1])
    assert 0 < chosen < len(RATES) - 1, "the best rate is not one at the edge"
    best[name] = losses[chosen]
    print(
        f"{name:9} best at rate {RATES[chosen]:<6g} final loss {best[name][-1]:.1e}"
    )

figure, axes = plt.subplots()
for name, losses in best.items():
    axes.plot(losses, label=name)
axes.set(
    yscale="log",
    xlabel="step",
    ylabel="loss",
    title="Each at its best learning rate",
)
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
assert min(best, key=lambda name: best[name][-1]) == "Muon"

# %% [markdown]
# This problem suits Muon, because its only difficulty is that directions differ. [The page of claims](../docs/claims.md) has measurements on models.
#
# ## The last step: QK-Clip
#
# An attention logit is a product of two weight matrices, so it can grow much faster than either. MuonClip is Muon with one more step: after each update, it scales down the query and key weights of every head whose largest logit exceeds a threshold. Other heads do not change.

# %%
WIDTH, HEADS, DIM = 32, 2, 16
keys = jax.random.split(jax.random.key(0), 3)
params = {
    "attn": {
        "query": {"kernel": jax.random.normal(keys[0], (WIDTH, HEADS, DIM))},
        "key": {"kernel": jax.random.normal(keys[1], (WIDTH, HEADS, DIM))},
    }
}
params["attn"]["query"]["kernel"] *= jnp.asarray([0.3, 3.0])[
    :, None
]  # large logits in the second head
inputs = jax.random.normal(keys[2], (1, 64, WIDTH))


def largest_logits(params):
    query, key = (
        jnp.einsum("bti,ihd->bthd", inputs, params["attn"][name]["kernel"])
        for name in ("query", "key")
    )
    return attention.max_attention_logits(query, key)


before = largest_logits(params)
tx = muon_jax.muon_clip(
    0.0, threshold=100.0
)  # without a learning rate, only the clip acts
updates, state = tx.update(
    jax.tree.map(jnp.zeros_like, params),
    tx.init(params),
    params,
    max_logits={"attn": before},
)
clipped = optax.apply_updates(params, updates)
after = largest_logits(clipped)
print("before", np.round(before, 1), " after", np.round(after, 1))

# %%
assert before[0] < 100 < before[1]
np.testing.assert_allclose(after[1], 100, rtol=1e-3)
for name in ("query", "key"):
    cool = slice(None), 0
    np.testing.assert_array_equal(
        clipped["attn"][name]["kernel"][cool],
        params["attn"][name]["kernel"][cool],
    )

# %% [markdown]
# [MuonClip](../docs/how-to/muonclip.md) explains how your model can report its logits, and how to choose the threshold.
