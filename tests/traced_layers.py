"""Expected results of `trace_axes` for layers, with the losses in `small_losses`."""

import functools

import jax
import jax.numpy as jnp
from small_losses import (
    BATCH,
    HEAD,
    HEADS,
    TIME,
    WIDTH,
    all_experts,
    attend,
    by_index,
    classified,
    conv,
    experts,
    flat,
    fused_attention,
    gathered_experts,
    grouped_attention,
    gru,
    images,
    in_every_head,
    labels,
    latent_attention,
    linear_attention,
    lstm,
    modulated,
    perceiver,
    ragged,
    rotated,
    tied,
    tokens,
    x,
)
from traces import array, cross_entropy

LAYERS = {
    # name: (the loss, the shapes of its parameters, its other arguments, the expected results)
    "a dense layer, and the last": (
        lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["last"],
        {"w": (WIDTH, 8), "b": (8,), "last": (8, 3)},
        [flat],
        {"w": "0|1", "last": "0|1"},
    ),
    "outputs first": (
        lambda p, x: (jnp.einsum("btd,od->bto", x, p["w"]) @ p["last"]).sum(),
        {"w": (8, WIDTH), "last": (8, 3)},
        [x],
        {"w": "1|0", "last": "0|1"},
    ),
    "heads in and out": (
        lambda p, x: jnp.einsum(
            "bthk,hkd->btd", jnp.einsum("btd,dhk->bthk", x, p["q"]), p["o"]
        ).sum(),
        {"q": (WIDTH, HEADS, HEAD), "o": (HEADS, HEAD, WIDTH)},
        [x],
        {"q": "0|1,2", "o": "0,1|2"},
    ),
    "heads first, flat, and reshaped": (
        lambda p, x: x @ p["w"].reshape(HEADS, WIDTH, HEAD).transpose(1, 0, 2).reshape(WIDTH, -1),
        {"w": (HEADS * WIDTH, HEAD)},
        [x],
        {"w": "?0|1"},
    ),
    "heads that each have their own": (
        lambda p, x: jnp.einsum("bthk,hkj->bthj", x.reshape(BATCH, TIME, HEADS, HEAD), p["w"]),
        {"w": (HEADS, HEAD, 7)},
        [x],
        {"w": "1|2"},
    ),
    "heads that each have their own, flat": (
        lambda p, x: jnp.einsum(
            "bthk,hkj->bthj", x.reshape(BATCH, TIME, HEADS, HEAD), p["w"].reshape(HEADS, HEAD, 7)
        ),
        {"w": (WIDTH, 7)},
        [x],
        {"w": "?0|1"},
    ),
    "softmax at the end": (
        lambda p, x, y: cross_entropy(jax.nn.relu(x @ p["w"]) @ p["head"], y),
        {"w": (WIDTH, 8), "head": (8, 10)},
        [flat, labels],
        {"w": "0|1", "head": "logits"},
    ),
    "labels by number": (
        lambda p, x, y: jnp.take_along_axis(x @ p["q"], y[:, None], 1).mean(),
        {"q": (WIDTH, 5)},
        [flat, labels],
        {"q": "logits"},
    ),
    "a tied table": (
        tied,
        {"table": (50, WIDTH), "w": (WIDTH, WIDTH)},
        [tokens],
        {"table": "lookup table", "w": "0|1"},
    ),
    "lookup by one-hot": (
        lambda p, t: (jax.nn.one_hot(t, 50) @ p["table"] @ p["last"]).sum(),
        {"table": (50, WIDTH), "last": (WIDTH, 3)},
        [tokens],
        {"table": "lookup table", "last": "0|1"},
    ),
    "positions: looked up, added, sliced": (
        lambda p, x: ((x + p["a"][jnp.arange(TIME)] + p["b"] + p["c"][:TIME]) @ p["w"]).sum(),
        {"a": (9, WIDTH), "b": (1, TIME, WIDTH), "c": (9, WIDTH), "w": (WIDTH, 3)},
        [x],
        {"a": "lookup table", "b": "elementwise", "c": "elementwise", "w": "0|1"},
    ),
    "qkv side by side": (
        fused_attention,
        {"qkv": (WIDTH, 3 * WIDTH)},
        [x],
        {"qkv": "0|1/3"},
    ),
    "qkv side by side, with rotary halves": (
        functools.partial(fused_attention, rope="halves"),
        {"qkv": (WIDTH, 3 * WIDTH)},
        [x],
        {"qkv": "0|1/3"},
    ),
    "qkv side by side, with rotary pairs": (
        functools.partial(fused_attention, rope="interleaved"),
        {"qkv": (WIDTH, 3 * WIDTH)},
        [x],
        {"qkv": "0|1/3"},
    ),
    "qkv of unequal width": (
        grouped_attention,
        {"qkv": (WIDTH, (HEADS + 2) * HEAD)},
        [x],
        {"qkv": "0|1/(12,4,4)"},
    ),
    "qkv on an axis": (by_index, {"qkv": (WIDTH, 3, HEADS, HEAD)}, [x], {"qkv": "0|2,3"}),
    "qkv in every head": (
        in_every_head,
        {"qkv": (WIDTH, 3 * WIDTH)},
        [x],
        {"qkv": "0|1/(4,4,4)i"},
    ),
    "rotary halves alone": (
        lambda p, x: attend(
            *[rotated((x @ p[n]).reshape(BATCH, TIME, HEADS, HEAD)) for n in "qkv"]
        ),
        {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH)},
        [x],
        {"q": "0|1", "k": "0|1", "v": "0|1"},
    ),
    "latent attention": (
        latent_attention,
        {"down": (WIDTH, 8), "up": (6, HEADS, 2 * HEAD), "q": (WIDTH, HEADS, HEAD + 2)},
        [x],
        {"down": "0|1/(6,2)", "up": "0|1,2/(4,4)i", "q": "0|1,2"},
    ),
    "attention of JAX": (
        lambda p, x: jax.nn.dot_product_attention(
            *[jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv"], is_causal=True
        ),
        {"q": (WIDTH, 6, HEAD), "k": (WIDTH, 2, HEAD), "v": (WIDTH, 2, HEAD)},
        [x],
        {"q": "0|1,2", "k": "0|1,2", "v": "0|1,2"},
    ),
    "linear attention with a softmax over features": (
        linear_attention,
        {"q": (WIDTH, 6), "k": (WIDTH, 6), "v": (WIDTH, 6), "out": (6, 3)},
        [x],
        {"q": "0|1", "k": "0|1", "v": "0|1", "out": "0|1"},
    ),
    "gate and up": (
        lambda p, x: (
            (jax.nn.silu(jnp.split(x @ p["w"], 2, -1)[0]) * jnp.split(x @ p["w"], 2, -1)[1])
            @ p["down"]
        ).sum(),
        {"w": (WIDTH, 20), "down": (10, 3)},
        [x],
        {"w": "0|1/2", "down": "0|1"},
    ),
    "gate and up in pairs": (
        lambda p, x: (
            jax.nn.silu((x @ p["w"])[..., ::2]) * (x @ p["w"])[..., 1::2] @ p["down"]
        ).sum(),
        {"w": (WIDTH, 20), "down": (10, 3)},
        [x],
        {"w": "0|1/2i", "down": "0|1"},
    ),
    "gate and up in pairs of heads": (
        lambda p, x: (
            jax.nn.silu(jnp.einsum("btd,dhk->bthk", x, p["w"])[:, :, ::2])
            * jnp.einsum("btd,dhk->bthk", x, p["w"])[:, :, 1::2]
        ).sum(),
        {"w": (WIDTH, 6, HEAD)},
        [x],
        {"w": "0|1,2/(4,4)i"},
    ),
    "gate and up on an axis, cut before use": (
        lambda p, x: (jax.nn.gelu(x @ p["w"][0]) * (x @ p["w"][1]) @ p["down"]).sum(),
        {"w": (2, WIDTH, 10), "down": (10, 3)},
        [x],
        {"w": "1|2", "down": "0|1"},
    ),
    "matrices joined here": (
        lambda p, x: (
            jax.nn.silu(jnp.split(x @ jnp.concatenate([p["a"], p["b"]], 1), 2, -1)[0])
            * jnp.split(x @ jnp.concatenate([p["a"], p["b"]], 1), 2, -1)[1]
            @ p["down"]
        ).sum(),
        {"a": (WIDTH, 10), "b": (WIDTH, 10), "down": (10, 3)},
        [x],
        {"a": "0|1", "b": "0|1", "down": "0|1"},
    ),
    "gates of an LSTM": (
        lstm,
        {"wx": (WIDTH, 16), "wh": (4, 16)},
        [x],
        {"wx": "0|1/4", "wh": "0|1/4"},
    ),
    "gates of a GRU": (
        gru,
        {"wx": (WIDTH, 12), "wh": (4, 12)},
        [x],
        {"wx": "0|1/3", "wh": "0|1/3"},
    ),
    "modulation by a condition": (
        modulated,
        {"first": (WIDTH, 8), "ada": (6, 24), "w": (8, 8), "last": (8, 3)},
        [x, array(BATCH, 6)],
        {"first": "0|1", "ada": "0|1", "w": "0|1", "last": "0|1"},
    ),
    "experts by a mask": (
        experts,
        {"router": (WIDTH, 6), "up": (6, WIDTH, 20), "down": (6, 20, WIDTH), "head": (WIDTH, 3)},
        [x],
        {"router": "router", "up": "1|2", "down": "1|2", "head": "0|1"},
    ),
    "experts all at once": (
        all_experts,
        {"router": (WIDTH, 6), "up": (6, WIDTH, 20), "down": (6, 20, WIDTH), "head": (WIDTH, 3)},
        [x],
        {"router": "router", "up": "1|2", "down": "1|2", "head": "0|1"},
    ),
    "experts one after the other": (
        ragged,
        {"router": (WIDTH, 6), "up": (6, WIDTH, 20), "down": (6, 20, WIDTH), "head": (WIDTH, 3)},
        [x],
        {"router": "router", "up": "1|2", "down": "1|2", "head": "0|1"},
    ),
    "experts picked for every token": (
        gathered_experts,
        {"router": (WIDTH, 6), "up": (6, WIDTH, 20), "head": (20, 3)},
        [x],
        {"router": "router", "up": "1|2", "head": "0|1"},
    ),
    "learned queries": (
        perceiver,
        {"latents": (7, 8), "q": (8, 6), "k": (WIDTH, 6), "out": (WIDTH, 3)},
        [x],
        {"latents": "learned tokens", "q": "0|1", "k": "0|1", "out": "0|1"},
    ),
    "learned queries that only their name tells": (
        lambda p, x: (
            jax.nn.softmax(p["latents"] @ p["q"] @ (x @ p["k"]).swapaxes(1, 2)) @ x
        ).sum(),
        {"latents": (7, 8), "q": (8, 6), "k": (WIDTH, 6)},
        [x],
        {"latents": "learned tokens", "q": "0|1", "k": "0|1"},
    ),
    "a mixture of matrices by a learned vector": (
        lambda p, x: (x @ jnp.einsum("k,kdf->df", p["mix"], p["basis"]) @ p["last"]).sum(),
        {"mix": (3,), "basis": (3, WIDTH, 8), "last": (8, 2)},
        [x],
        {"basis": "?ambiguous", "last": "0|1"},
    ),
    "a product of parameters": (
        lambda p, x: (x @ (p["a"] @ p["b"]) @ p["c"]).sum(),
        {"a": (WIDTH, 3), "b": (3, 8), "c": (8, 2)},
        [x],
        {"a": "?0|1", "b": "?0|1", "c": "0|1"},
    ),
    "a token beside data, and a start of a loop": (
        lambda p, x: (
            jax.lax.scan(
                lambda h, x: (jnp.tanh(x @ p["w"] + h), None),
                jnp.broadcast_to(p["start"], (BATCH, 4)),
                jnp.concatenate([jnp.tile(p["token"], (BATCH, 1, 1)), x], 1).swapaxes(0, 1),
            )[0]
        ).sum(),
        {"w": (WIDTH, 4), "start": (BATCH, 4), "token": (1, 2, WIDTH)},
        [x],
        {"w": "0|1", "start": "learned tokens", "token": "learned tokens"},
    ),
    "filters of all kinds": (
        lambda p, x, y: classified(
            jax.nn.relu(conv(conv(conv(x, p["full"]), p["groups"], 2), p["depth"], 8)).mean((1, 2)),
            p,
            y,
        ),
        {"full": (3, 3, 6, 8), "groups": (3, 3, 4, 8), "depth": (3, 3, 1, 8), "head": (8, 10)},
        [images, labels],
        {"full": "0,1,2|3", "groups": "0,1,2|3/2", "depth": "depthwise filter", "head": "logits"},
    ),
    "filters stored transposed": (
        lambda p, x: jax.lax.conv_transpose(
            x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWOI", "NHWC")
        ),
        {"w": (3, 3, 8, 6)},
        [images],
        {"w": "0,1,3|2"},
    ),
    "a stack of filters": (
        lambda p, x: jax.vmap(conv)(x, p["w"]).sum(),
        {"w": (4, 3, 3, 6, 8)},
        [array(4, BATCH, 8, 8, 6)],
        {"w": "1,2,3|4"},
    ),
    "a stack of depthwise filters": (
        lambda p, x: jax.vmap(lambda x, w: conv(x, w, 6))(x, p["w"]).sum(),
        {"w": (4, 3, 3, 1, 6)},
        [array(4, BATCH, 8, 8, 6)],
        {"w": "depthwise filter"},
    ),
}
