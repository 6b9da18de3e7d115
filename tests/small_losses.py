"""Small losses for tests of `trace_axes`, with one layer or one operation of JAX each."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from traces import array, cross_entropy

WIDTH, HEADS, HEAD, TIME, BATCH = 12, 3, 4, 5, 2
x = array(BATCH, TIME, WIDTH)
flat = array(BATCH, WIDTH)
images = array(BATCH, 8, 8, 6)
tokens = array(BATCH, TIME, dtype="int32")
labels = array(BATCH, dtype="int32")


def attend(q, k, v):
    """Computes attention over (batch, time, heads, head)."""
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
    return jnp.einsum("bhqs,bshk->bqhk", weights, v)


def rotated(x, interleaved=False):
    """Applies rotary positions to the last axis."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] / 100 ** (jnp.arange(half) / half)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def normed(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def fused_attention(p, x, rope=None):
    q, k, v = (part.reshape(*x.shape[:2], -1, HEAD) for part in jnp.split(x @ p["qkv"], 3, -1))
    if rope is not None:
        q, k = (rotated(each, rope == "interleaved") for each in (q, k))
    return attend(q, k, v).sum() + (normed(q) * k).sum()


def grouped_attention(p, x):
    """Computes attention of three query heads on one key, cut apart after heads are split."""
    out = (x @ p["qkv"]).reshape(*x.shape[:2], HEADS + 2, HEAD)
    q, k, v = jnp.split(out, [HEADS, HEADS + 1], axis=2)
    repeated = (jnp.repeat(each, HEADS, axis=2) for each in (k, v))
    return attend(rotated(q), *repeated).sum()


def by_index(p, x):
    out = jnp.einsum("btd,dchk->bcthk", x, p["qkv"])
    return attend(out[:, 0], out[:, 1], out[:, 2]).sum()


def in_every_head(p, x):
    out = (x @ p["qkv"]).reshape(*x.shape[:2], HEADS, 3 * HEAD)
    return attend(*jnp.split(out, 3, -1)).sum()


def latent_attention(p, x):
    latent, rotary = jnp.split(x @ p["down"], [6], -1)
    up = jnp.einsum("btl,lhk->bthk", normed(latent), p["up"])
    k, v = up[..., :HEAD], up[..., HEAD:]
    rotary = jnp.broadcast_to(rotated(rotary[:, :, None]), (*k.shape[:3], 2))
    q = jnp.einsum("btd,dhk->bthk", x, p["q"])
    q = jnp.concatenate([q[..., :HEAD], rotated(q[..., HEAD:])], -1)
    return attend(q, jnp.concatenate([k, rotary], -1), v).sum()


def lstm(p, x):
    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p["wx"] + h @ p["wh"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((x.shape[0], p["wh"].shape[0]))
    return jax.lax.scan(step, (start, start), x.swapaxes(0, 1))[1].sum()


def gru(p, x):
    def step(h, x):
        r, z, n = jnp.split(x @ p["wx"], 3, -1)
        hr, hz, hn = jnp.split(h @ p["wh"], 3, -1)
        r, z = jax.nn.sigmoid(r + hr), jax.nn.sigmoid(z + hz)
        h = (1 - z) * jnp.tanh(n + r * hn) + z * h
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[0], 4)), x.swapaxes(0, 1))[1].sum()


def modulated(p, x, c):
    y = x @ p["first"]
    shift, scale, gate = (part[:, None] for part in jnp.split(jax.nn.silu(c) @ p["ada"], 3, -1))
    out = (normed(y) * (1 + scale) + shift) @ p["w"]
    return ((y + gate * out) @ p["last"]).sum()


def experts(p, x):
    """Applies two experts to every token, by a mask."""
    gates = x @ p["router"]
    best, chosen = jax.lax.top_k(gates, 2)
    mask = jax.nn.one_hot(chosen, gates.shape[-1]) * jax.nn.softmax(best)[..., None]
    sent = jnp.einsum("btke,btd->ebtd", mask, x)
    hidden = jax.nn.relu(jnp.einsum("ebtd,edf->ebtf", sent, p["up"]))
    return (jnp.einsum("ebtf,efd->btd", hidden, p["down"]) @ p["head"]).sum()


def all_experts(p, x):
    """Applies all experts to every token, weighted by a softmax."""
    gates = jax.nn.softmax(x @ p["router"])
    hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, p["up"]))
    out = jnp.einsum("btef,efd->bted", hidden, p["down"])
    return (jnp.einsum("bted,bte->btd", out, gates) @ p["head"]).sum()


def ragged(p, x):
    tokens = x.reshape(-1, WIDTH)
    chosen = jnp.argmax(tokens @ p["router"], -1)
    counts = jnp.bincount(chosen, length=6)
    hidden = jax.nn.gelu(jax.lax.ragged_dot(tokens[jnp.argsort(chosen)], p["up"], counts))
    return (jax.lax.ragged_dot(hidden, p["down"], counts) @ p["head"]).sum()


def gathered_experts(p, x):
    chosen = jnp.argmax(x @ p["router"], -1)
    return (jnp.einsum("btd,btdf->btf", x, p["up"][chosen]) @ p["head"]).sum()


def perceiver(p, x):
    q = jnp.broadcast_to(p["latents"], (x.shape[0], *p["latents"].shape)) @ p["q"]
    return (jax.nn.softmax(q @ (x @ p["k"]).swapaxes(1, 2)) @ x @ p["out"]).sum()


def tied(p, tokens):
    return cross_entropy(p["table"][tokens] @ p["w"] @ p["table"].T, tokens)


def conv(x, w, groups=1, **how):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups, **how
    )


def classified(features, p, labels):
    return cross_entropy(features @ p["head"], labels)


def scanned(p, x):
    body = jax.checkpoint(lambda x, w: (x + jax.nn.relu(x @ w["up"]) @ w["down"], None))
    return (jax.lax.scan(body, x, p["layers"])[0] @ p["head"]).sum()


def looped(p, x):
    def body(layer, x):
        return x + jax.nn.relu(x @ p["up"][layer]) @ p["down"][layer]

    return (jax.lax.fori_loop(0, 3, body, x) @ p["head"]).sum()


def stacked_here(p, x):
    """Scans over layers that are separate parameters, stacked in the loss."""
    stack = jnp.stack([p[f"layer{number}"] for number in range(3)])
    return (jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, stack)[0] @ p["head"]).sum()


@jax.custom_vjp
def own_gradient(x, w):
    return x @ w


own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def state_space(p, x):
    dt, b, c = jnp.split(x @ p["x_proj"], [2, 5], -1)
    dt = jax.nn.softplus(dt @ p["dt_proj"])

    def step(h, inputs):
        x, dt, b, c = inputs
        h = jnp.exp(dt[..., None] * -jnp.exp(p["a_log"])) * h + (dt * x)[..., None] * b[:, None]
        return h, jnp.einsum("bdn,bn->bd", h, c)

    start = jnp.zeros((x.shape[0], WIDTH, 3))
    ys = jax.lax.scan(step, start, jax.tree.map(lambda a: a.swapaxes(0, 1), (x, dt, b, c)))[1]
    return (ys @ p["out"]).sum()


def linear_attention(p, x):
    q, k = jax.nn.softmax(x @ p["q"]), jax.nn.softmax(x @ p["k"], axis=1)
    return (q @ (k.swapaxes(1, 2) @ (x @ p["v"])) @ p["out"]).sum()


def quantised(p, x):
    scale = jnp.max(jnp.abs(p["w"]), axis=0) / 127
    rounded = jnp.round(p["w"] / scale) * scale
    w = p["w"] + jax.lax.stop_gradient(rounded - p["w"])
    return (x.astype("bfloat16") @ w.astype("bfloat16") @ p["last"].astype("bfloat16")).sum()


@functools.partial(
    jax.shard_map,
    mesh=AbstractMesh((2,), ("t",), axis_types=(AxisType.Auto,)),
    in_specs=(P("t", None), P(None, "t"), P("t", None), P()),
    out_specs=P(),
)
def on_shards(w0, w1, w2, x):
    """Gathers the first weight; the columns of the other weights are sharded over two devices."""
    gate, up = jnp.split(x @ jax.lax.all_gather(w0, "t", axis=0, tiled=True) @ w1, 2, -1)
    return jax.lax.psum((jax.nn.silu(gate) * up) @ w2, "t")


def in_pallas(x, w):
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
    return pallas.pallas_call(kernel, out_shape=shape)(x, w)
