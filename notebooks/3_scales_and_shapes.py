# %% [markdown]
# # Scales and shapes
#
# An orthogonal matrix has a fixed size. How large a step should be is a separate question, and the answer depends on the shape. This notebook measures both.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import muon_jax

if Path("notebooks.mplstyle").exists():  # appearance only
    plt.style.use("notebooks.mplstyle")


def rms(array):
    return float(jnp.sqrt(jnp.mean(jnp.square(array))))


def gradient(shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


# %% [markdown]
# ## The size of an orthogonal matrix
#
# All min(rows, cols) singular values are one, so the squares of the entries add up to min(rows, cols), and their root mean square is $1/\sqrt{\max(\text{rows}, \text{cols})}$ (lemma 1 of Liu et al. 2025). Unscaled, a wide layer would learn more slowly than a narrow one.

# %%
svd = muon_jax.polar_by_svd()
shapes = [(rows, cols) for rows in (16, 64, 256) for cols in (16, 64, 256)]
measured = [rms(svd(gradient((1, *shape)))) for shape in shapes]
predicted = [1 / np.sqrt(max(shape)) for shape in shapes]
np.testing.assert_allclose(measured, predicted, rtol=1e-4)
for shape, one, other in zip(shapes, measured, predicted, strict=True):
    print(
        f"{shape[0]:3} × {shape[1]:<3}  measured {one:.5f}  predicted {other:.5f}"
    )

# %% [markdown]
# ## Ways to scale it
#
# | scale | factor | keeps the same for all shapes |
# |---|---|---|
# | `"outputs"`, the default | 0.2·√cols | how much the step can change an output, for inputs of equal length |
# | `"match_rms"` | 0.2·√max(rows, cols) | the root mean square, 0.2, as in a typical AdamW update |
# | `"spectral"` | √(cols/rows) | how much the step can change the root mean square of activations |
# | `"keller"` | √max(1, cols/rows) | the same, except that narrowing layers keep 1 |
# | `"none"` | 1 | the largest singular value |
# | `hidden_size(w)` | 0.2·√w | nothing; right for matrices as long as w |
# | `"update_norm"` | 0.2 over the measured RMS | the root mean square, even of an update of low rank |
#
# Rows are inputs and columns outputs, whichever way the parameter is stored.

# %%
SCALES = {
    "outputs": "outputs",
    "match_rms": "match_rms",
    "spectral": "spectral",
    "keller": "keller",
    "hidden_size(128)": muon_jax.hidden_size(128),
    "none": "none",
}
WIDTHS = [32, 64, 128, 256, 512, 1024]


def update(cols, scale):
    axes = muon_jax.MatrixAxes(rows=0, cols=1)
    return muon_jax.orthogonalize_tree(gradient((128, cols)), axes, scale=scale)


figure, (size, norm) = plt.subplots(1, 2)
for name, scale in SCALES.items():
    updates = [update(cols, scale) for cols in WIDTHS]
    size.plot(
        WIDTHS, [rms(each) for each in updates], "o-", markersize=3, label=name
    )
    norm.plot(
        WIDTHS,
        [float(jnp.linalg.norm(each, 2)) for each in updates],
        "o-",
        markersize=3,
    )
for axes in (size, norm):
    axes.set(
        xscale="log", yscale="log", xlabel="outputs of a layer with 128 inputs"
    )
size.set_title("root mean square of an update")
norm.set_title("its largest singular value")
size.legend(fontsize=8)

matched = [rms(update(cols, "match_rms")) for cols in WIDTHS]
np.testing.assert_allclose(matched, 0.2, rtol=0.05)

# %% [markdown]
# The learning rate depends on the scale: with `"outputs"` and `"match_rms"` it is about AdamW's, with `"spectral"`, `"keller"` or `"none"` it is larger, usually 0.02 where AdamW has 3e-4. So `muon` gives AdamW 2.5 times the learning rate with the first two, and the learning rate itself with `"spectral"` and `"keller"`.
#
# ## Which numbers are rows and which are columns
#
# For a dense kernel this is clear. An attention kernel has three axes, a convolution four, a stack of scanned layers one more, and one array may contain three matrices. A `MatrixAxes` describes how an array is a batch of matrices, and the rules choose it by names and shapes.

# %%
params = {
    "attn": {
        "query": {
            "kernel": jnp.zeros((512, 8, 64))
        },  # Flax: inputs, heads, head_dim
        "out": {"kernel": jnp.zeros((8, 64, 512))},
        "qkv": {
            "kernel": jnp.zeros((512, 1536))
        },  # three matrices in one kernel
    },
    "conv": {"kernel": jnp.zeros((3, 3, 64, 128)), "bias": jnp.zeros(128)},
    "layers": {
        "mlp": {
            "kernel": jnp.zeros((12, 512, 2048)),
            "bias": jnp.zeros((12, 2048)),
        }
    },
}
views = muon_jax.matrix_axes(params)
print(muon_jax.explain(params, muon_jax.muon(1e-3)))

# %%
assert views["attn"]["query"]["kernel"].matrix_shapes((512, 8, 64)) == (
    (1, 512, 512),
)
assert views["attn"]["qkv"]["kernel"].matrix_shapes((512, 1536)) == (
    (3, 512, 512),
)
assert views["conv"]["kernel"].matrix_shapes((3, 3, 64, 128)) == (
    (1, 576, 128),
)
assert views["layers"]["mlp"]["kernel"].matrix_shapes((12, 512, 2048)) == (
    (12, 512, 2048),
)
