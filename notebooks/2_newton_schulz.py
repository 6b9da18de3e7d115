# %% [markdown]
# # What Newton-Schulz does to singular values
#
# Muon replaces a momentum $X = U S V^\top$ by $U V^\top$: every singular value becomes one, and the singular vectors stay. A singular value decomposition computes this slowly. Newton-Schulz computes it by matrix products alone, because an odd polynomial of a matrix changes only the singular values:
#
# $$ a X + b\,(XX^\top) X + c\,(XX^\top)^2 X \;=\; U \,(aS + bS^3 + cS^5)\, V^\top. $$

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
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import muon_jax

if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")

rng = np.random.default_rng(0)
left, _ = np.linalg.qr(rng.normal(size=(256, 256)))
right, _ = np.linalg.qr(rng.normal(size=(256, 256)))
values = np.geomspace(1, 1e-3, 256)
matrix = jnp.asarray(left * values @ right.T, jnp.float32)


def after(orthogonalize):
    """Returns the results along the singular vectors of the input."""
    turned = (
        left.T @ np.asarray(orthogonalize(matrix[None])[0], np.float64) @ right
    )
    off = np.abs(turned - np.diag(np.diag(turned))).max()
    assert off < 2e-3, "the directions stay"
    return np.diag(turned)


# %% [markdown]
# ## Step by step
#
# Jordan's polynomial, (a, b, c) = (3.4445, −4.7750, 2.0315), multiplies small values by 3.4445 a step and keeps large values in a band around one. It never converges: after five steps, values are between 0.7 and 1.2, which is close enough for training.

# %%
figure, axes = plt.subplots()
axes.axhline(1, color="#bbbbbb", linewidth=1)
axes.plot(
    values,
    values / np.linalg.norm(values),
    ":",
    color="#777777",
    label="normalised",
)
for steps in range(1, 6):
    keller = muon_jax.newton_schulz(
        "keller", steps=steps, normalization="frobenius"
    )
    axes.plot(
        values,
        after(keller),
        color=plt.cm.viridis(0.9 - steps / 6),
        label=f"{steps} steps",
    )
axes.set(
    xscale="log", xlabel="singular value, over the largest", ylabel="after"
)
axes.set_title("Five steps of Jordan's quintic")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

keller = after(
    muon_jax.newton_schulz("keller", steps=5, normalization="frobenius")
)
assert 0.65 < keller[values > 0.03].min() < keller.max() < 1.25

# %% [markdown]
# ## A designed schedule
#
# The library's own schedules compose different polynomials: each is the minimax polynomial on the interval of the results of the previous one. `"fast"`, the default, is three steps of degree nine; `"accurate"` adds a fourth of degree five. Their bands are narrow for values down to 1/500 of a bound on the largest value. The first step computes this bound from its own products.

# %%
figure, axes = plt.subplots()
axes.axhline(1, color="#bbbbbb", linewidth=1)
for name in ("keller", "fast", "accurate", "polar_express"):
    axes.plot(values, after(muon_jax.newton_schulz(name)), label=name)
axes.axvline(1 / 500, color="#777777", linestyle=":", linewidth=1)
axes.annotate(
    "1/500",
    (1 / 500, 0.1),
    xytext=(4, 0),
    textcoords="offset points",
    color="#777777",
)
axes.set(
    xscale="log",
    ylim=(0, 1.3),
    xlabel="singular value, over the largest",
    ylabel="after",
)
axes.set_title("Named schedules, as they come")
axes.legend(loc="lower right")

kept = values > 1 / 200


def spread(name):
    return np.abs(after(muon_jax.newton_schulz(name))[kept] - 1).max()


for name in ("keller", "fast", "accurate", "polar_express"):
    print(
        f"{name:14} at most {spread(name):.3f} from one, for values above 1/200"
    )
assert spread("accurate") < spread("fast") < spread("keller")

# %% [markdown]
# ## What it costs
#
# A plan, computed once for each shape in Python, decides which products run. On a wide matrix most of the work is in products with the long side, so steps share them where rounding errors stay small.

# %%
for shape in ((256, 256), (256, 1024)):
    print(shape, muon_jax.newton_schulz("fast").plan(*shape))

# %% [markdown]
# ## As a picture
#
# The picture shows a matrix of three waves and some noise, and its polar factor. The few large directions no longer dominate: each has the same weight. The weakest are below 1/500 of the largest, outside the range of the schedule; `polar_to` iterates until the measured residual is small.

# %%
grid = np.linspace(0, 1, 48)
waves = sum(
    np.outer(np.sin(k * np.pi * grid), np.cos((k + 1) * np.pi * grid)) / k
    for k in (1, 2, 3)
)
momentum = jnp.asarray(waves + 0.03 * rng.normal(size=(48, 48)), jnp.float32)
orthogonal = muon_jax.polar_to(1e-4)(momentum[None])[0]
pictures = {
    "momentum": momentum,
    "orthogonalised": orthogonal,
    "times its transpose": orthogonal @ orthogonal.T,
}
figure, panels = plt.subplots(1, 3, figsize=(7.2, 2.7))
for panel, (title, picture) in zip(panels, pictures.items(), strict=True):
    limit = float(jnp.abs(picture).max())
    panel.imshow(picture, cmap="RdBu", vmin=-limit, vmax=limit)
    panel.set_title(title)
    panel.set_axis_off()
np.testing.assert_allclose(
    pictures["times its transpose"], np.eye(48), atol=2e-3
)
