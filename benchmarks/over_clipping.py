"""Measures what other heads lose when one head with large logits makes its whole layer clip.

Trains the same small decoder three times on the source of Python's standard library: without
QK-Clip, with every head clipped by its own largest logit, and with all heads of a layer clipped by
the largest logit of the layer. A head is over-clipped whenever its weights shrink although its own
logits were in bounds. Run it from the repository: `python -m benchmarks.over_clipping`.
"""

import argparse
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from muon_jax import clip_qk
from muon_jax.attention import max_attention_logits

LAYERS, WIDTH, HEADS, LENGTH, BATCH = 3, 64, 8, 96, 8


def text():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)


def initial(key):
    def normal(*shape, fan):
        nonlocal key
        key, used = jax.random.split(key)
        return jax.random.normal(used, shape) / fan**0.5

    heads = (LAYERS, WIDTH, HEADS, WIDTH // HEADS)
    return {
        "embed": normal(256, WIDTH, fan=1),
        "position": normal(LENGTH, WIDTH, fan=1),
        "attn": {
            "query": {"kernel": normal(*heads, fan=WIDTH)},
            "key": {"kernel": normal(*heads, fan=WIDTH)},
            "value": {"kernel": normal(*heads, fan=WIDTH)},
            "out": {"kernel": normal(LAYERS, HEADS, WIDTH // HEADS, WIDTH, fan=WIDTH)},
        },
        "up": normal(LAYERS, WIDTH, 4 * WIDTH, fan=WIDTH),
        "down": normal(LAYERS, 4 * WIDTH, WIDTH, fan=4 * WIDTH),
        "head": normal(WIDTH, 256, fan=WIDTH),
    }


def normalised(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def loss(params, tokens):
    """Returns the cross entropy and the (layers, heads) largest logits."""

    def block(x, layer):
        attn, up, down = layer
        query, key, value = (
            jnp.einsum("btw,whd->bthd", normalised(x), attn[name]["kernel"])
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x += jnp.einsum("bthd,hdw->btw", mixed, attn["out"]["kernel"])
        x += jax.nn.relu(normalised(x) @ up) @ down
        return x, max_attention_logits(query, key, is_causal=True)

    x = params["embed"][tokens[:, :-1]] + params["position"]
    x, maxima = jax.lax.scan(block, x, (params["attn"], params["up"], params["down"]))
    logits = normalised(x) @ params["head"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
    ).mean(), maxima


def per_head(maxima):
    return maxima


def all_heads_together(maxima):
    return jnp.broadcast_to(jnp.max(maxima, axis=-1, keepdims=True), maxima.shape)


def never(maxima):
    return jnp.zeros_like(maxima)


def train(steps, learning_rate, threshold, seen_by_clip):
    """Returns the losses (steps,) and the largest logits (steps, layers, heads)."""
    tx = optax.chain(optax.adam(learning_rate), clip_qk(threshold))
    params = initial(jax.random.key(0))
    state, corpus, draw = tx.init(params), text(), np.random.default_rng(0)

    @jax.jit
    def step(params, state, tokens):
        (value, maxima), gradient = jax.value_and_grad(loss, has_aux=True)(params, tokens)
        max_logits = {"attn": seen_by_clip(maxima)}
        updates, state = tx.update(gradient, state, params, max_logits=max_logits)
        return optax.apply_updates(params, updates), state, value, maxima

    losses, history = [], []
    for _ in range(steps):
        starts = draw.integers(0, corpus.size - LENGTH - 1, BATCH)
        tokens = corpus[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32)
        params, state, value, maxima = step(params, state, tokens)
        losses.append(float(value))
        history.append(np.asarray(maxima))
    return np.array(losses), np.array(history)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--threshold", type=float, default=100.0)
    options = parser.parse_args()
    print(
        "| clipped | heads clipped | of these in bounds | their logits cut to, mean and worst "
        "| largest logit, last 50 steps | loss, last 200 steps |"
    )
    print("|---|---|---|---|---|---|")
    for rule in (never, per_head, all_heads_together):
        losses, history = train(options.steps, options.learning_rate, options.threshold, rule)
        factor = options.threshold / np.maximum(rule(history), options.threshold)
        in_bounds = (factor < 1) & (history <= options.threshold)
        # Each clip multiplies the logits of a head by its factor; a run multiplies by the product.
        cut = np.exp(np.sum(np.log(factor), axis=0, where=in_bounds))
        print(
            f"| {rule.__name__.replace('_', ' ')} | {np.sum(factor < 1)} | {np.sum(in_bounds)} "
            f"| {np.exp(np.mean(np.log(cut))):.2f}, {cut.min():.2f} "
            f"| {history[-50:].max():.0f} | {losses[-200:].mean():.3f} |"
        )


if __name__ == "__main__":
    main()
