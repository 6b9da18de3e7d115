"""Bounds attention logits with MuonClip, beside Muon and AdamW.

Run: python examples/muon_clip.py        (needs flax; under a minute on a CPU)

Shows: muon_jax.muon_clip, which is muon_jax.muon followed by QK-Clip. Each attention layer reports
the largest logit of each head; if it is above the threshold, the update scales the query and key
weights of that head down. The learning rate is so large that the logits grow quickly: this
threshold of 5 is for a short run, the default is 100. The text is Python's standard library.
"""

import sysconfig
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import muon_jax
from muon_jax.attention import collect_max_logits, reporting

STEPS, BATCH, CONTEXT, WIDTH, HEADS = 150, 16, 64, 64, 4
LEARNING_RATE, THRESHOLD = 1e-2, 5.0


class LanguageModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS,
            WIDTH,
            decode=False,
            attention_fn=reporting(nnx.dot_product_attention),
            rngs=rngs,
        )
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 256, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions(np.arange(tokens.shape[1]))
        # With `sow_weights=True` Flax passes the layer to attention_fn, which reports its logits.
        mask = nnx.make_causal_mask(tokens)
        x = x + self.attention(self.norm(x), mask=mask, sow_weights=True)
        return self.head(x + self.down(nnx.gelu(self.up(x))))


def loss_fn(model, windows):
    """Returns the loss, and the largest logit of each head by the path of the layer."""
    forward = nnx.capture(lambda model, tokens: model(tokens), nnx.Intermediate)
    logits, intermediates = forward(model, windows[:, :-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()
    return loss, collect_max_logits(intermediates)


@nnx.jit
def train_step(model, optimizer, windows):
    (loss, max_logits), gradients = nnx.value_and_grad(loss_fn, has_aux=True)(model, windows)
    optimizer.update(model, gradients, max_logits=max_logits)  # Muon and AdamW ignore max_logits
    return loss, max_logits


def train(tx, text):
    """Returns the training loss and the largest logit of all heads, step by step."""
    model = LanguageModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng, losses, maxima = np.random.default_rng(0), [], []
    for _ in range(STEPS):
        starts = rng.integers(0, len(text) - CONTEXT, BATCH)
        windows = text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
        loss, max_logits = train_step(model, optimizer, windows)
        losses.append(float(loss))
        maxima.append(max(float(leaf.max()) for leaf in jax.tree.leaves(max_logits)))
    return losses, maxima


def main():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    optimizers = {
        "AdamW": optax.adamw(LEARNING_RATE, weight_decay=0.1),
        "Muon": muon_jax.muon(LEARNING_RATE, weight_decay=0.0),
        "MuonClip": muon_jax.muon_clip(LEARNING_RATE, threshold=THRESHOLD, weight_decay=0.0),
    }
    for name, tx in optimizers.items():
        losses, maxima = train(tx, text)
        shown = ", ".join(f"{maxima[step]:.1f}" for step in np.linspace(0, STEPS - 1, 6, dtype=int))
        print(
            f"{name:>8}: loss of the last steps {np.mean(losses[-20:]):.3f}, largest logit {shown}"
        )


if __name__ == "__main__":
    main()
