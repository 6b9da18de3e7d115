"""One model in many storage layouts gets the same update.

The gradients of a small transformer are stored as in different libraries and styles. The update
must equal that of separate (inputs, outputs) matrices.
"""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from flax import nnx

from muon_jax._checks import path_name
from muon_jax.optimizers._muon import muon
from muon_jax.transforms._muon import scale_by_muon

LAYERS, WIDTH, HEADS, SIZE, HIDDEN = 3, 16, 2, 8, 40
SHAPES = {
    "query": (WIDTH, HEADS * SIZE),
    "key": (WIDTH, HEADS * SIZE),
    "value": (WIDTH, HEADS * SIZE),
    "out": (HEADS * SIZE, WIDTH),
    "up": (WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([NNXBlock(rngs) for _ in range(LAYERS)])


class ScannedNNXModel(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.vmap(NNXBlock)(rngs.split(LAYERS))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x += nn.MultiHeadDotProductAttention(HEADS, use_bias=False, name="attn")(nn.RMSNorm()(x))
        return x + nn.Dense(WIDTH, name="down")(nn.Dense(HIDDEN, name="up")(x)), None


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        for layer in range(LAYERS):
            x, _ = LinenBlock(name=f"block_{layer}")(x)
        return x


class ScannedLinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
        )
        return stack(name="blocks")(x, None)[0]


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.RMSNorm
    attn: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.RMSNorm(WIDTH)
        self.attn = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=key)
        self.up = eqx.nn.Linear(WIDTH, HIDDEN, key=key)
        self.down = eqx.nn.Linear(HIDDEN, WIDTH, key=key)


def linen(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5, WIDTH)))


def fused_blocks():
    """Returns dictionaries with q, k and v in one kernel."""
    block = {
        "attn": {"qkv": {"kernel": (WIDTH, 3 * HEADS * SIZE)}, "out": {"kernel": SHAPES["out"]}},
        "up": {"kernel": SHAPES["up"]},
        "down": {"kernel": SHAPES["down"]},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        [block] * LAYERS,
        is_leaf=lambda node: isinstance(node, tuple),
    )


MODELS = {
    "NNX": lambda: nnx.state(nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0))), nnx.Param),
    "NNX, scanned": lambda: nnx.state(
        nnx.eval_shape(lambda: ScannedNNXModel(nnx.Rngs(0))), nnx.Param
    ),
    "Linen": lambda: linen(LinenModel()),
    "Linen, scanned": lambda: linen(ScannedLinenModel()),
    "Equinox": lambda: eqx.filter_eval_shape(
        lambda: [EquinoxBlock(jax.random.key(layer)) for layer in range(LAYERS)]
    ),
    "Equinox, scanned": lambda: {
        "blocks": eqx.filter_eval_shape(
            lambda: eqx.filter_vmap(EquinoxBlock)(jax.random.split(jax.random.key(0), LAYERS))
        )
    },
    "fused": fused_blocks,
}


def layers_of(words):
    """Returns the layers whose weights are in an array: one, or all of a stack."""
    for word in words:
        digits = word.removeprefix("block_")
        if digits.isdigit():
            return [int(digits)]
    return range(LAYERS)


def laid_out(path, leaf, weights):
    """Returns the array of a path, from plain matrices by layer and name."""
    words = path_name(path).removesuffix("/value").split("/")
    if words[-1] not in ("kernel", "weight"):
        return np.zeros(leaf.shape, np.float32)
    name = words[-2].removesuffix("_proj").replace("output", "out")
    if name == "norm" or name.startswith("RMSNorm"):
        return np.zeros(leaf.shape, np.float32)
    parts = ["query", "key", "value"] if name == "qkv" else [name]
    stacked = []
    for layer in layers_of(words):
        whole = np.concatenate([weights[layer][part] for part in parts], axis=1)
        stacked.append(whole.T if words[-1] == "weight" else whole)
    return np.stack(stacked).reshape(leaf.shape)


def fill(shapes, weights):
    arrays = eqx.filter(shapes, lambda leaf: hasattr(leaf, "shape"))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: laid_out(path, leaf, weights), arrays
    )


@pytest.fixture(scope="module")
def gradients():
    rng = np.random.default_rng(0)
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        for _ in range(LAYERS)
    ]


@pytest.fixture(scope="module")
def updates(gradients):
    """Returns the update of every matrix by itself, without names or stacks."""
    transform = scale_by_muon(scale="keller")
    plain = [{name: {"kernel": each} for name, each in layer.items()} for layer in gradients]
    done: Any = transform.update(plain, transform.init(plain))[0]
    return [{name: -each["kernel"] for name, each in layer.items()} for layer in done]


@pytest.mark.parametrize("name", covering(MODELS, fast=["NNX, scanned", "Linen", "fused"]))
def test_every_layout_gets_the_same_update(name, gradients, updates):
    given = fill(MODELS[name](), gradients)
    transform = muon(1.0, scale="keller", weight_decay=0.0)
    found, _ = transform.update(given, transform.init(given), given)
    jax.tree.map(
        lambda actual, wanted: np.testing.assert_allclose(actual, wanted, atol=2e-5),
        found,
        fill(MODELS[name](), updates),
    )


def test_the_layouts_hold_the_gradients_unchanged(gradients):
    """Every entry of every gradient is in every layout once, which this file relies on."""
    total = sum(each.sum(dtype=np.float64) for layer in gradients for each in layer.values())
    for make in MODELS.values():
        held = sum(leaf.sum() for leaf in jax.tree.leaves(fill(make(), gradients)))
        np.testing.assert_allclose(held, total, rtol=1e-4)
