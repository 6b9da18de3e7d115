# %% [markdown]
# # Looking inside a run
#
# A loss shows that training works, not how. `muon_jax.diagnostics` measures weights and steps during training: in the state of the optimizer, at an interval of your choice, and without cost between measurements. It wraps any Optax optimizer, so two can be compared.

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
import sysconfig

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import muon_jax
from muon_jax.diagnostics import monitor, singular_value_entropy, stable_rank

if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")

files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)

# %% [markdown]
# ## Four numbers for a matrix
#
# | | for | measures |
# |---|---|---|
# | `singular_value_entropy` | weights | how evenly the energy is spread over directions, from 0 (one direction) to 1 (all equal) |
# | `stable_rank` | weights | how many directions have most of the energy |
# | `orthogonality_residual` | steps | how far from orthogonal, up to scale; 0 is exact |
# | `update_to_weight_rms` | steps | the relative size of a step |

# %%
orthogonal = muon_jax.polar_by_svd()(
    jax.random.normal(jax.random.key(0), (1, 64, 64))
)[0]
gaussian = jax.random.normal(jax.random.key(0), (64, 64))
one_direction = jnp.outer(jnp.ones(64), jnp.arange(1.0, 65))
for name, matrix in {
    "orthogonal": orthogonal,
    "Gaussian": gaussian,
    "of rank one": one_direction,
}.items():
    entropy, rank = (
        float(singular_value_entropy(matrix)),
        float(stable_rank(matrix)),
    )
    print(f"{name:12} entropy {entropy:.3f}  stable rank {rank:5.2f}")

# %%
np.testing.assert_allclose(singular_value_entropy(orthogonal), 1, atol=1e-4)
np.testing.assert_allclose(singular_value_entropy(one_direction), 0, atol=1e-4)

# %% [markdown]
# ## A measured run
#
# Three dense layers predict the next byte of Python's standard library from the sixteen bytes before it. `monitor` wraps the optimizer and changes none of its updates. It measures at the first step and every 20 steps, behind a `jax.lax.cond`; a training loop reads its state whenever it logs.

# %%
CONTEXT, WIDTH, HIDDEN, BATCH, STEPS, EVERY = 16, 24, 128, 256, 400, 20
SIZES = {
    "up": (CONTEXT * WIDTH, HIDDEN),
    "mix": (HIDDEN, HIDDEN),
    "head": (HIDDEN, 256),
}


def new_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    layers = {
        name: {"kernel": jax.random.normal(key, shape) / np.sqrt(shape[0])}
        for key, (name, shape) in zip(keys, SIZES.items(), strict=False)
    }
    return layers | {
        "embed": {"embedding": jax.random.normal(keys[3], (256, WIDTH))}
    }


def loss_of(params, windows):
    x = params["embed"]["embedding"][windows[:, :-1]].reshape(len(windows), -1)
    for name in ("up", "mix"):
        x = jax.nn.gelu(x @ params[name]["kernel"])
    logits = x @ params["head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, windows[:, -1]
    ).mean()


def train(make, rate):
    tx = monitor(
        make(optax.cosine_decay_schedule(rate, STEPS), weight_decay=0.1),
        every=EVERY,
    )

    @jax.jit
    def step(params, state, windows):
        loss, gradients = jax.value_and_grad(loss_of)(params, windows)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, rng, seen = new_params(), np.random.default_rng(0), {}
    state = tx.init(params)
    for index in range(STEPS):
        starts = rng.integers(0, len(text) - CONTEXT - 1, BATCH)
        windows = jnp.asarray(
            text[starts[:, None] + np.arange(CONTEXT + 1)], jnp.int32
        )
        params, state, loss = step(params, state, windows)
        if index % EVERY == 0:
            seen[index] = (
                float(loss),
                optax.tree_utils.tree_get(state, "measurements"),
            )
    return seen


runs = {"Muon": train(muon_jax.muon, 1e-2), "AdamW": train(optax.adamw, 1e-2)}
last = STEPS - EVERY
print("measured:", ", ".join(runs["Muon"][last][1]))

# %% [markdown]
# The head is not in the list, because AdamW trains it, and `monitor` measures the parameters of Muon unless `axes=` names others.

# %%
figure, panels = plt.subplots(2, 2, figsize=(7.2, 5), sharex=True)
TITLES = {
    "entropy": "entropy of the weights",
    "stable_rank": "stable rank of the weights",
    "update_residual": "residual of the steps",
    "update_to_weight": "size of a step over that of the weights",
}
for panel, (field, title) in zip(panels.flat, TITLES.items(), strict=True):
    for color, (name, seen) in zip(("C0", "C1"), runs.items(), strict=True):
        for style, layer in (("-", "mix"), (":", "up")):
            series = [
                getattr(found[f"{layer}/kernel"], field)[0]
                for _, found in seen.values()
            ]
            panel.plot(
                list(seen), series, style, color=color, label=f"{name}, {layer}"
            )
    panel.set_title(title)
panels[1, 1].set_yscale("log")
handles, names = panels[0, 0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=4)
for panel in panels[1]:
    panel.set_xlabel("step")

# %% [markdown]
# There are three results. Muon's weights spread over more directions at the end than AdamW's, as Liu et al. (2025) report for large models. Its steps are far closer to orthogonal, though not exactly: the schedule is approximate, and weight decay is part of a step. And the relative size of a step falls with the learning rate.

# %%


def at_the_end(name, field):
    found = runs[name][last][1]
    return np.array(
        [getattr(found[f"{layer}/kernel"], field)[0] for layer in ("mix", "up")]
    )


for field in ("entropy", "stable_rank", "update_residual"):
    print(
        f"{field:16} Muon {at_the_end('Muon', field)}  AdamW {at_the_end('AdamW', field)}"
    )
assert (at_the_end("Muon", "entropy") > at_the_end("AdamW", "entropy")).all()
assert (
    at_the_end("Muon", "update_residual")
    < at_the_end("AdamW", "update_residual")
).all()

# %% [markdown]
# One run of each optimizer at one learning rate shows what to look at, not what holds in general.
