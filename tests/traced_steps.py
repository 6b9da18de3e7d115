"""Expected results of `trace_axes` for layers inside loops, calls, casts and other operations."""

import jax
import jax.numpy as jnp
from small_losses import (
    BATCH,
    HEAD,
    HEADS,
    TIME,
    WIDTH,
    flat,
    in_pallas,
    labels,
    looped,
    on_shards,
    own_gradient,
    quantised,
    scanned,
    stacked_here,
    state_space,
    x,
)
from traces import array

STEPS = {
    # name: (the loss, the shapes of its parameters, its other arguments, the expected results)
    "layers of a scan, under remat": (
        scanned,
        {"layers/up": (3, WIDTH, 20), "layers/down": (3, 20, WIDTH), "head": (WIDTH, 2)},
        [x],
        {"layers/up": "1|2", "layers/down": "1|2", "head": "0|1"},
    ),
    "layers of a loop": (
        looped,
        {"up": (3, WIDTH, 20), "down": (3, 20, WIDTH), "head": (WIDTH, 2)},
        [x],
        {"up": "1|2", "down": "1|2", "head": "0|1"},
    ),
    "layers stacked for a scan": (
        stacked_here,
        {**{f"layer{number}": (WIDTH, WIDTH) for number in range(3)}, "head": (WIDTH, 2)},
        [x],
        {"layer0": "0|1", "layer1": "0|1", "layer2": "0|1", "head": "0|1"},
    ),
    "a layer behind a condition": (
        lambda p, x, y: (
            jax.lax.cond(y[0] > 0, lambda x: x @ p["a"], lambda x: jnp.tanh(x @ p["b"]), x)
            @ p["last"]
        ).sum(),
        {"a": (WIDTH, 8), "b": (WIDTH, 8), "last": (8, 2)},
        [x, labels],
        {"a": "0|1", "b": "0|1", "last": "0|1"},
    ),
    "calls: jit, custom_vjp, vmap, jvp": (
        lambda p, x: (
            jax.jvp(
                lambda x: jnp.tanh(x @ p["b"]),
                *[(jax.vmap(own_gradient, (0, None))(x, p["a"]),)] * 2,
            )[1]
            @ p["c"]
        ).sum(),
        {"a": (WIDTH, 8), "b": (8, 8), "c": (8, 2)},
        [x],
        {"a": "0|1", "b": "0|1", "c": "0|1"},
    ),
    "a gradient inside": (
        lambda p, x: jax.grad(lambda x: (jnp.tanh(x @ p["a"]) @ p["b"]).sum())(x).sum(),
        {"a": (WIDTH, 8), "b": (8, 2)},
        [flat],
        {"a": "0|1", "b": "0|1"},
    ),
    "low precision": (
        quantised,
        {"w": (WIDTH, 8), "last": (8, 2)},
        [x],
        {"w": "0|1", "last": "0|1"},
    ),
    "a weight that data scale": (
        lambda p, x, s: (x @ (p["w"] / s) @ p["last"]).sum(),
        {"w": (WIDTH, 8), "last": (8, 2)},
        [x, array()],
        {"w": "0|1", "last": "0|1"},
    ),
    "noise on every weight": (
        lambda p, x, noise: (x @ (p["mu"] + jnp.exp(p["rho"]) * noise) @ p["last"]).sum(),
        {"mu": (WIDTH, 8), "rho": (WIDTH, 8), "last": (8, 2)},
        [x, array(WIDTH, 8)],
        {"mu": "elementwise", "rho": "rates", "last": "0|1"},
    ),
    "weights with a norm of their own": (
        lambda p, x: (x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)) @ p["last"]).sum(),
        {"v": (WIDTH, 8), "g": (8,), "last": (8, 2)},
        [x],
        {"v": "0|1", "last": "0|1"},
    ),
    "a state space": (
        state_space,
        {"x_proj": (WIDTH, 8), "dt_proj": (2, WIDTH), "a_log": (WIDTH, 3), "out": (WIDTH, 4)},
        [x],
        {"x_proj": "0|1/(2,3,3)", "dt_proj": "0|1", "a_log": "rates", "out": "0|1"},
    ),
    "gains with two axes": (
        lambda p, x: (x.reshape(BATCH, TIME, HEADS, HEAD) * p["gain"] + p["bias"]).sum(),
        {"gain": (HEADS, HEAD), "bias": (HEADS, HEAD)},
        [x],
        {"gain": "elementwise", "bias": "elementwise"},
    ),
    "vectors of heads that are summed over": (
        lambda p, x: jnp.einsum("bthk,hk->bth", x.reshape(BATCH, TIME, HEADS, HEAD), p["a"]).sum(),
        {"a": (HEADS, HEAD)},
        [x],
        {"a": "elementwise"},
    ),
    "a product that is written out": (
        lambda p, x: (jnp.sum(x[..., None] * p["w"], axis=2) @ p["last"]).sum(),
        {"w": (WIDTH, 8), "last": (8, 2)},
        [x],
        {"w": "0|1", "last": "0|1"},
    ),
    "a mask, and a matrix with its transpose": (
        lambda p, x: (x @ (p["w"] * jnp.tri(WIDTH)) @ (p["s"] + p["s"].T) @ p["last"]).sum(),
        {"w": (WIDTH, WIDTH), "s": (WIDTH, WIDTH), "last": (WIDTH, 2)},
        [x],
        {"w": "0|1", "s": "0|1", "last": "0|1"},
    ),
    "the shards of a mesh": (
        lambda p, x: on_shards(p["w0"], p["w1"], p["w2"], x.reshape(-1, WIDTH)).sum(),
        {"w0": (WIDTH, 8), "w1": (8, 40), "w2": (20, 6)},
        [x],
        {"w0": "0|1", "w1": "0|1/(10,10)i", "w2": "0|1"},
    ),
    "a kernel of Pallas": (
        lambda p, x: (in_pallas(x, p["kernel"]) @ p["last"]).sum(),
        {"kernel": (WIDTH, 8), "last": (8, 2)},
        [flat],
        {"kernel": "?0|1", "last": "0|1"},
    ),
    "a matrix of frequencies": (
        lambda p, x: jnp.fft.irfft(
            jnp.fft.rfft(x, axis=1) * jnp.fft.rfft(p["filter"], axis=0), axis=1
        ).sum(),
        {"filter": (TIME, WIDTH)},
        [x],
        {"filter": "?0|1"},
    ),
}
