"""Trains a small language model in Flax NNX with Muon and with AdamW.

Run: python examples/language_model_nnx.py        (needs flax; under a minute on a CPU)

Shows: muon_jax.muon in nnx.Optimizer, with a learning-rate schedule. Muon takes the matrices of
the blocks; the embedding, the output head and the norms go to AdamW. The text is the source code
of Python's standard library, one token per byte.
"""

import sysconfig
from pathlib import Path

import numpy as np
import optax
from flax import nnx

import muon_jax

STEPS, BATCH, CONTEXT = 200, 16, 64
WIDTH, HEADS, LAYERS = 64, 4, 2
# Each is the best peak learning rate of 5e-3, 1e-2, 2e-2 and 4e-2.
LEARNING_RATES = {"Muon": 2e-2, "AdamW": 1e-2}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, use_bias=False, decode=False, rngs=rngs
        )
        self.mlp_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class LanguageModel(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions(np.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss_fn(model, windows):
    logits = model(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


@nnx.jit
def train_step(model, optimizer, windows):
    loss, gradients = nnx.value_and_grad(loss_fn)(model, windows)
    optimizer.update(model, gradients)
    return loss


def sample_windows(text, rng, count):
    starts = rng.integers(0, len(text) - CONTEXT, count)
    return np.stack([text[start : start + CONTEXT + 1] for start in starts]).astype(np.int32)


def train(tx, train_text, test_windows):
    """Returns the loss on `test_windows` after training from the same seed."""
    model = LanguageModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        train_step(model, optimizer, sample_windows(train_text, rng, BATCH))
    return float(nnx.jit(loss_fn)(model, test_windows))


def main():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    train_text, test_text = np.split(text, [9 * len(text) // 10])
    test_windows = sample_windows(test_text, np.random.default_rng(1), 128)
    params = nnx.state(nnx.eval_shape(lambda: LanguageModel(nnx.Rngs(0))))
    print(muon_jax.explain(params, muon_jax.muon(LEARNING_RATES["Muon"], weight_decay=0.1)))
    for name, optimizer in {"Muon": muon_jax.muon, "AdamW": optax.adamw}.items():
        schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATES[name], STEPS // 10, STEPS)
        loss = train(optimizer(schedule, weight_decay=0.1), train_text, test_windows)
        print(f"{name:>5}: loss {loss:.3f} nats per byte after {STEPS} steps")


if __name__ == "__main__":
    main()
