# %% [markdown]
# # Between SGD and Muon
#
# Normalised SGD steps along the gradient $G = U S V^\top$ itself, Muon along $U V^\top$. Both are answers to one question: *which step of a given size lowers the loss fastest?* They measure the size of a step differently. If the size is the Schatten norm, the $p$-norm of the singular values, the answer is
#
# $$ D_p \;\propto\; U S^{1/(p-1)}\, V^\top, $$
#
# which is normalised SGD for $p = 2$ and Muon for $p = \infty$. Every $p$ between gives another direction, which `muon_jax.steepest_descent(p)` computes.

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
import json
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import muon_jax

if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")

NORMS = (2, 3, 4, 8, 32, math.inf)
COLORS = dict(
    zip(NORMS, plt.cm.viridis(np.linspace(0, 0.9, len(NORMS))), strict=True)
)
LABELS = {p: "p = ∞" if p == math.inf else f"p = {p:g}" for p in NORMS}
POWERS = [1 / (p - 1) for p in NORMS]

rng = np.random.default_rng(0)
left, _ = np.linalg.qr(rng.normal(size=(64, 64)))
right, _ = np.linalg.qr(rng.normal(size=(64, 64)))


def step(matrix, p):
    """Returns the direction of steepest descent, in float64."""
    batch = jnp.asarray(matrix, jnp.float32)[None]
    return np.asarray(muon_jax.steepest_descent(p)(batch)[0], np.float64)


# %% [markdown]
# ## The effect on singular values
#
# The singular vectors stay, and every singular value is raised to one power: a straight line in logarithmic axes, with slope 1 for SGD and 0 for Muon. Each line is shifted so that all steps have the Frobenius norm of $U V^\top$. Their entries then have one size, so learning rates are comparable.

# %%
values = np.geomspace(1, 1e-2, 64)
gradient = left * values @ right.T

figure, axes = plt.subplots()
for p, power in zip(NORMS, POWERS, strict=True):
    after = np.diag(left.T @ step(gradient, p) @ right)
    axes.loglog(values, after, color=COLORS[p], label=LABELS[p])
    slope = np.polyfit(np.log(values), np.log(after), 1)[0]
    np.testing.assert_allclose(slope, power, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(after), 8, rtol=1e-4)
axes.set(xlabel="singular value of the gradient", ylabel="of the step")
axes.set_title("From SGD to Muon, the spectrum flattens")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# ## Each direction is the fastest in its own norm
#
# The figure gives every direction the same size in one norm, and shows how fast it lowers the loss, relative to the fastest. Each norm has another fastest direction, as in the formula, whose speed is the *dual* norm of the gradient, $\|G\|_q$ with $1/p + 1/q = 1$. SGD's direction is slow in Muon's norm, and Muon's is slow in SGD's.

# %%


def schatten(matrix, p):
    return np.linalg.norm(np.linalg.svd(matrix, compute_uv=False), p)


def speed(direction, p):
    return np.sum(gradient * direction) / schatten(direction, p)


speeds = np.array(
    [[speed(step(gradient, other), p) for other in NORMS] for p in NORMS]
)
for p, fastest in zip(NORMS, np.diag(speeds), strict=True):
    dual = 1 if p == math.inf else p / (p - 1)
    np.testing.assert_allclose(fastest, schatten(gradient, dual), rtol=1e-4)
relative = speeds / np.diag(speeds)[:, None]
assert (relative <= 1 + 1e-6).all()

figure, axes = plt.subplots(figsize=(5.2, 3.8))
axes.imshow(relative, cmap="viridis", vmin=0.3, vmax=1)
for row, col in np.ndindex(relative.shape):
    axes.text(
        col,
        row,
        f"{relative[row, col]:.2f}",
        ha="center",
        va="center",
        color="white" if relative[row, col] < 0.85 else "black",
    )
names = [LABELS[p] for p in NORMS]
axes.set_xticks(range(len(NORMS)), names)
axes.set_yticks(range(len(NORMS)), names)
axes.set(xlabel="direction", ylabel="norm that is held fixed")
axes.set_title("Descent, over the fastest")
axes.grid(False)

# %% [markdown]
# ## The effect of noise
#
# The gradient of a batch is the true gradient plus noise. Here the true gradient has eight directions, each weaker than the previous one, and the noise has a small part in all directions. SGD's step has mostly the strongest direction, and little of the eighth. Muon gives every direction the same weight, also those of the noise. Between them, the weak part of the signal has its largest share of the step.

# %%
signal = np.geomspace(1, 0.1, 8)
truth = left[:, :8] * signal @ right[:, :8].T
noisy = truth + 0.004 * rng.normal(size=(64, 64))

loudest, faintest, heard_noise = [], [], []
for p in NORMS:
    direction = step(noisy, p)
    along = left.T @ direction @ right
    energy = np.square(along) / np.sum(np.square(along))
    loudest.append(energy[0, 0])
    faintest.append(energy[7, 7])
    heard_noise.append(1 - energy[:8, :8].sum())

figure, axes = plt.subplots()
axes.plot(POWERS, loudest, "o-", label="loudest direction")
axes.plot(POWERS, faintest, "o-", label="faintest direction of the signal")
axes.plot(POWERS, heard_noise, "o-", label="noise")
axes.set(
    yscale="log",
    xlabel="power of the singular values: Muon 0, SGD 1",
    ylabel="share of the step's energy",
)
axes.set_title("Who is heard")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
assert loudest == sorted(loudest, reverse=True)
assert heard_noise == sorted(heard_noise)
assert 0 < np.argmax(faintest) < len(NORMS) - 1, "neither SGD nor Muon"

# %% [markdown]
# ## The effect on training
#
# The problem of [From SGD to MuonClip](4_from_sgd_to_muonclip.ipynb), where $A$ and $B$ stretch some directions a hundred times more than others, with noise on the gradient. Every $p$ chooses among the same learning rates.

# %%
SIZE, STEPS = 32, 150
NOISE = jnp.asarray([0.0, 0.3, 3.0])  # over the RMS of the gradient
RATES = jnp.geomspace(0.003, 30, 13)
AXES = muon_jax.MatrixAxes(rows=0, cols=1)


def stretching(seed):
    one, other = (
        jnp.linalg.qr(jax.random.normal(key, (SIZE, SIZE)))[0]
        for key in jax.random.split(jax.random.key(seed))
    )
    return one * jnp.geomspace(1, 1e-2, SIZE) @ other


A, B = stretching(0), stretching(1)
TARGET = jax.random.normal(jax.random.key(2), (SIZE, SIZE))


def loss_of(weights):
    return jnp.mean(jnp.square(A @ (weights - TARGET) @ B))


def final_loss(p, noise, rate):
    tx = optax.chain(
        muon_jax.scale_by_muon(
            axes=AXES, orthogonalizer=muon_jax.steepest_descent(p)
        ),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(rate, STEPS)),
    )

    def update(carry, key):
        weights, state = carry
        grads = jax.grad(loss_of)(weights)
        size = noise * jnp.sqrt(jnp.mean(jnp.square(grads)))
        grads += size * jax.random.normal(key, grads.shape)
        updates, state = tx.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros((SIZE, SIZE))
    keys = jax.random.split(jax.random.key(3), STEPS)
    (weights, _), _ = jax.lax.scan(update, (start, tx.init(start)), keys)
    return loss_of(weights)


best = np.zeros((len(NORMS), len(NOISE)))
for index, p in enumerate(NORMS):
    by_rate = jax.vmap(functools.partial(final_loss, p), (None, 0))
    losses = np.asarray(jax.jit(jax.vmap(by_rate, (0, None)))(NOISE, RATES))
    chosen = losses.argmin(axis=1)
    assert ((chosen > 0) & (chosen < len(RATES) - 1)).all(), (
        "no rate at the edge"
    )
    best[index] = losses.min(axis=1)

figure, panels = plt.subplots(1, 3, figsize=(7.2, 2.6))
for panel, noise, losses in zip(panels, NOISE, best.T, strict=True):
    panel.plot(POWERS, losses / losses.min(), "o-")
    panel.plot(POWERS[losses.argmin()], 1, "o", color="C1")
    panel.set(title=f"noise {noise:g}", xlabel="power: Muon 0, SGD 1")
panels[0].set(yscale="log", ylabel="loss at the end, over the best")
for noise, losses in zip(NOISE, best.T, strict=True):
    print(f"noise {noise:g}: best is {LABELS[NORMS[losses.argmin()]]}")

# %% [markdown]
# Without noise a flat spectrum is best: $p = 32$ ends slightly lower than Muon, and SGD two orders of magnitude higher. With little noise the best $p$ is between the two; where noise is three times the gradient, SGD is best. The batch size decides the noise, so a large batch is a reason for a large $p$.

# %%
quiet, some, loud = best.T
assert NORMS[quiet.argmin()] >= 8
assert quiet[0] > 50 * quiet.min()
assert 2 < NORMS[some.argmin()] < math.inf
assert NORMS[loud.argmin()] == 2

# %% [markdown]
# ## In a language model
#
# `python -m experiments.schatten run` trains a small decoder on Python's standard library with each $p$ for its matrices and one AdamW for everything else. Every $p$ had seven learning rates with one seed, and the best of them had three seeds. The figure shows the saved results.

# %%
saved = Path("../experiments/results/schatten.jsonl").read_text()
runs = {}
for row in map(json.loads, saved.splitlines()):
    trial = row["trial"]
    p = float(trial["orthogonalizer"].removeprefix("schatten:"))
    found = row["measured"]["held_out_loss"][str(trial["steps"])]
    rates = runs.setdefault(p, {})
    rates.setdefault(trial["learning_rate"], []).append(found)
held_out = np.array([max(runs[p].values(), key=len) for p in NORMS])
assert held_out.shape == (len(NORMS), 3)

means = held_out.mean(axis=1)
figure, axes = plt.subplots()
axes.fill_between(
    POWERS, held_out.min(axis=1), held_out.max(axis=1), alpha=0.25, linewidth=0
)
axes.plot(POWERS, means, "o-")
axes.set(
    xlabel="power of the singular values: Muon 0, SGD 1",
    ylabel="held-out loss (nats per byte)",
)
axes.set_title("Three seeds at the best rate: mean and range")
for p, mean in zip(NORMS, means, strict=True):
    print(f"{LABELS[p]:6} {mean:.4f}")

# %% [markdown]
# A flatter spectrum is better, up to Muon: at a batch of 1,024 bytes noise does not favour a smaller $p$. [The page on norms](../docs/explanation/norms.md) has the learning rates, and the results of papers on larger models.

# %%
assert (np.diff(means) < 0).all()
