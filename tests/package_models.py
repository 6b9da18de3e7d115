"""Models built from the layers of Flax, Equinox, Haiku and Keras, with a loss each.

Every entry returns a loss, its parameters or module, and its other arguments. Where Haiku or Keras
is not installed, its entries skip.
"""

import os

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from traces import array, cross_entropy

tokens = array(2, 9, dtype="int32")
rows = array(2, 6)
steps = array(2, 9, 6)
images = array(2, 16, 16, 3)
frames = array(2, 5, 8, 8, 3)
labels = array(2, dtype="int32")


def squares(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def linen(model, x, classes=False):
    """A model of Flax Linen under a sum of squares, or under a cross-entropy with its inputs."""

    def built():
        keys = {"params": jax.random.key(0), "update_stats": jax.random.key(1)}
        shapes = jax.eval_shape(model.init, keys, x)
        rest = {name: tree for name, tree in shapes.items() if name != "params"}

        def loss(params, rest, x):
            out, _ = model.apply({"params": params, **rest}, x, mutable=list(rest))
            return cross_entropy(out, x) if classes else squares(out)

        return loss, shapes["params"], (rest, x)

    return built


def chain(*layers):
    return nn.Sequential(layers)


def module(build, x, classes=False):
    """As `linen`, for a module of Flax NNX."""

    def loss(model, x):
        return cross_entropy(model(x), x) if classes else squares(model(x))

    return lambda: (loss, nnx.eval_shape(lambda: build(nnx.Rngs(0))), (x,))


def equinox(build, x, apply=lambda model, x: jax.vmap(model)(x)):
    """As `linen`, for a module of Equinox."""
    return lambda: (
        lambda model, x: squares(apply(model, x)),
        eqx.filter_eval_shape(lambda: build(jax.random.key(0))),
        (x,),
    )


def unrolled(cell, x):
    """Runs a recurrent cell of Equinox over the second axis."""
    start = jnp.zeros(cell.hidden_size)
    if isinstance(cell, eqx.nn.LSTMCell):
        start = start, start
    return jax.vmap(lambda xs: jax.lax.scan(lambda h, x: (cell(x, h), None), start, xs)[0])(x)


def with_rotary(model, x):
    rotary = eqx.nn.RotaryPositionalEmbedding(4)

    def turned(q, k, v):
        return jax.vmap(rotary, 1, 1)(q), jax.vmap(rotary, 1, 1)(k), v

    return jax.vmap(lambda x: model(x, x, x, process_heads=turned))(x)


class Experts(nnx.Module):
    def __init__(self, rngs):
        each = nnx.vmap(lambda rngs: nnx.Linear(6, 12, rngs=rngs))
        back = nnx.vmap(lambda rngs: nnx.Linear(12, 6, rngs=rngs))
        self.router = nnx.Linear(6, 4, rngs=rngs)
        self.up, self.down = each(rngs.split(4)), back(rngs.split(4))
        self.last = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.up, x))
        out = nnx.vmap(lambda layer, x: layer(x))(self.down, hidden)
        return self.last(jnp.einsum("be,ebd->bd", nnx.softmax(self.router(x)), out))


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.LoRALinear(6, 8, lora_rank=2, rngs=rngs)
        self.two = nnx.LoRA(8, 2, 5, rngs=rngs)

    def __call__(self, x):
        return self.two(self.one(x))


class Filters(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.depth = nnx.Conv(8, 16, (3, 3), feature_group_count=8, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.up = nnx.ConvTranspose(16, 4, (2, 2), strides=2, rngs=rngs)

    def __call__(self, x):
        return self.up(nnx.relu(self.norm(self.depth(self.stem(x)))))


class Recurrent(nnx.Module):
    def __init__(self, rngs, cell):
        self.embed = nnx.Embed(20, 6, rngs=rngs)
        self.rnn, self.head = nnx.RNN(cell(6, 8, rngs=rngs)), nnx.Linear(8, 20, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(self.embed(x)))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(20, 12, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(3, 12, normalize_qk=True, decode=False, rngs=rngs)
        self.mix = nnx.Einsum("bti,iho->btho", (12, 2, 5), (2, 5), rngs=rngs)
        self.back = nnx.LinearGeneral((2, 5), 12, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        return self.embed.attend(self.back(self.mix(x + self.attn(x))))


def haiku_model(build, *inputs):
    def built():
        haiku = pytest.importorskip("haiku")
        net = haiku.transform_with_state(lambda *inputs: build(haiku, *inputs))
        params, state = jax.eval_shape(net.init, jax.random.key(0), *inputs)

        def loss(params, state, *inputs):
            return net.apply(params, state, jax.random.key(0), *inputs)[0]

        return loss, params, (state, *inputs)

    return built


def haiku_gpt(hk, tokens):
    start = hk.initializers.VarianceScaling()
    x = hk.Embed(50, 16)(tokens) + hk.get_parameter("pos_embs", [1, 9, 16], init=start)
    y = hk.LayerNorm(-1, True, True)(x)
    x = x + hk.MultiHeadAttention(4, 4, w_init=start, model_size=16)(y, y, y)
    x = x + hk.Linear(16)(jax.nn.gelu(hk.Linear(64)(hk.LayerNorm(-1, True, True)(x))))
    return cross_entropy(hk.Linear(50)(x), tokens)


def haiku_rnn(hk, tokens):
    core = hk.DeepRNN([hk.LSTM(12), hk.GRU(10), hk.VanillaRNN(8)])
    x = hk.Embed(50, 16)(tokens)
    x, _ = hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)
    return cross_entropy(hk.Linear(50)(x), tokens)


def haiku_conv_lstm(hk, x):
    core = hk.Conv2DLSTM((8, 8), 12, 3)
    x, _ = hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)
    return squares(x)


def haiku_vq(hk, x):
    found = hk.nets.VectorQuantizer(12, 40, 0.25)(hk.nets.MLP([16, 12])(x), True)
    return squares(hk.nets.MLP([16, 6])(found["quantize"]) - x) + found["loss"]


def haiku_classifier(net):
    return haiku_model(
        lambda hk, x, y: cross_entropy(net(hk)(x, True), y), array(2, 32, 32, 3), labels
    )


def keras_model(build, *inputs):
    def built():
        os.environ.setdefault("KERAS_BACKEND", "jax")
        keras = pytest.importorskip("keras")
        model = build(keras)
        variables = model.trainable_variables
        params = {each.path: array(*each.shape) for each in variables}
        rest = [each.value for each in model.non_trainable_variables]

        def loss(params, x, labels):
            trained = [params[each.path] for each in variables]
            out, _ = model.stateless_call(trained, rest, x, training=True)
            return cross_entropy(jnp.log(out), labels)

        return loss, params, (*inputs, labels)

    return built


def application(name):
    def build(keras):
        net = getattr(keras.applications, name)
        return net(weights=None, input_shape=(64, 64, 3), classes=10)

    return keras_model(build, array(2, 64, 64, 3))


def keras_encoder(keras):
    layers = keras.layers
    start = keras.Input((9,), dtype="int32")
    x = layers.Embedding(50, 16)(start)
    x = x + layers.MultiHeadAttention(4, 4)(x, x)
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x)
    x = layers.GRU(10, return_sequences=True)(layers.SeparableConv1D(24, 3)(x))
    return keras.Model(start, layers.Dense(10, activation="softmax")(layers.SimpleRNN(8)(x)))


PACKAGE_MODELS = {
    **{
        f"Linen {cell.__name__}": linen(
            chain(nn.Embed(20, 6), nn.RNN(cell(8)), nn.Dense(20)), tokens, classes=True
        )
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.MGUCell, nn.SimpleCell)
    },
    "Linen ConvLSTMCell": linen(nn.RNN(nn.ConvLSTMCell(6, (3, 3))), frames),
    "Linen attention": linen(
        chain(nn.Embed(20, 12), nn.SelfAttention(3, normalize_qk=True), nn.Dense(20)),
        tokens,
        classes=True,
    ),
    "Linen general layers": linen(
        chain(
            nn.DenseGeneral((3, 4)),
            nn.DenseGeneral(5, axis=(-2, -1)),
            nn.Einsum((5, 2, 3), "...a,abc->...bc"),
        ),
        rows,
    ),
    "Linen filters": linen(
        chain(
            nn.Conv(8, (3, 3)),
            nn.Conv(12, (3, 3), feature_group_count=4),
            nn.Conv(12, (3, 3), feature_group_count=12),
            nn.ConvTranspose(6, (2, 2), strides=(2, 2), transpose_kernel=True),
            nn.ConvLocal(5, (2, 2)),
            nn.PReLU(),
        ),
        images,
    ),
    "Linen WeightNorm": linen(chain(nn.WeightNorm(nn.Dense(8)), nn.relu, nn.Dense(3)), rows),
    "Linen vmap": linen(
        chain(
            *(
                nn.vmap(
                    nn.Dense,
                    in_axes=axis,
                    axis_size=4,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                )(width)
                for axis, width in ((None, 8), (0, 3))
            )
        ),
        rows,
    ),
    "NNX MultiHeadAttention": module(Attention, tokens, classes=True),
    **{
        f"NNX {cell.__name__}": module(
            lambda rngs, cell=cell: Recurrent(rngs, cell), tokens, classes=True
        )
        for cell in (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
    },
    "NNX LoRA": module(Adapted, rows),
    "NNX filters": module(Filters, images),
    "NNX vmap": module(Experts, rows),
    "Equinox MLP": equinox(lambda key: eqx.nn.MLP(6, 3, 8, 2, key=key), rows),
    "Equinox ensemble": equinox(
        lambda key: eqx.filter_vmap(lambda key: eqx.nn.MLP(6, 3, 8, 2, key=key))(
            jax.random.split(key, 4)
        ),
        rows,
        lambda model, x: eqx.filter_vmap(
            lambda model, x: jax.vmap(model)(x), in_axes=(eqx.if_array(0), None)
        )(model, x),
    ),
    "Equinox attention": equinox(
        lambda key: eqx.nn.MultiheadAttention(3, 12, key=key), array(2, 9, 12), with_rotary
    ),
    "Equinox LSTMCell": equinox(lambda key: eqx.nn.LSTMCell(6, 8, key=key), steps, unrolled),
    "Equinox GRUCell": equinox(lambda key: eqx.nn.GRUCell(6, 8, key=key), steps, unrolled),
    "Equinox filters": equinox(
        lambda key: eqx.nn.Sequential(
            [
                eqx.nn.Conv1d(6, 8, 3, key=key),
                eqx.nn.Conv1d(8, 8, 3, groups=8, key=key),
                eqx.nn.Conv1d(8, 6, 3, groups=2, key=key),
                eqx.nn.ConvTranspose1d(6, 4, 3, key=key),
            ]
        ),
        array(2, 6, 9),
    ),
    "Equinox WeightNorm": equinox(
        lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(6, 8, key=key)), rows
    ),
    "Haiku transformer": haiku_model(haiku_gpt, tokens),
    "Haiku recurrent cells": haiku_model(haiku_rnn, tokens),
    "Haiku Conv2DLSTM": haiku_model(haiku_conv_lstm, frames),
    "Haiku VectorQuantizer": haiku_model(haiku_vq, rows),
    "Haiku ResNet18": haiku_classifier(lambda hk: hk.nets.ResNet18(10)),
    "Haiku MobileNetV1": haiku_classifier(lambda hk: hk.nets.MobileNetV1(num_classes=10)),
    "Keras encoder": keras_model(keras_encoder, tokens),
    **{
        f"Keras {name}": application(name)
        for name in ("ConvNeXtTiny", "EfficientNetB0", "MobileNetV3Small", "ResNet50")
    },
}
