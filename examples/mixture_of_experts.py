"""Trains a language model with a mixture of experts, with Muon and with AdamW.

Run: python examples/mixture_of_experts.py        (needs flax; under a minute on a CPU)

Shows: all experts are one array of shape (experts, inputs, outputs), and Muon orthogonalises one
matrix for each expert. The router goes to AdamW. A loss term balances loads (Fedus et al. 2021).
"""

import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import muon_jax

STEPS, BATCH, CONTEXT, WIDTH, EXPERTS, BALANCE = 200, 256, 16, 128, 4, 0.1
# Each is the best of three peak learning rates, which differ by factors of 2.
LEARNING_RATES = {"Muon": 1e-2, "AdamW": 4e-2}


class Mixture(nnx.Module):
    """Returns the output, the balancing loss and the loads; every expert computes all tokens."""

    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        up, down = (init(rngs.params(), (EXPERTS, WIDTH, WIDTH)) for _ in range(2))
        self.experts = nnx.Dict(up=nnx.Param(up), down=nnx.Param(down))

    def __call__(self, x):
        probabilities = nnx.softmax(self.router(x))
        chosen = jax.nn.one_hot(probabilities.argmax(-1), EXPERTS)
        hidden = nnx.gelu(jnp.einsum("bi,eih->beh", x, self.experts.up[...]))
        outputs = jnp.einsum("beh,eho->beo", hidden, self.experts.down[...])
        output = jnp.einsum("be,beo->bo", probabilities * chosen, outputs)
        load = chosen.mean(axis=0)
        return output, EXPERTS * jnp.sum(load * probabilities.mean(axis=0)), load


class LanguageModel(nnx.Module):
    """Predicts a byte from the CONTEXT bytes before it."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH // CONTEXT, rngs=rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.mixture = Mixture(rngs)
        self.head = nnx.Linear(WIDTH, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens).reshape(-1, WIDTH)
        output, imbalance, load = self.mixture(self.norm(x))
        return self.head(x + output), imbalance, load


def loss_fn(model, windows):
    logits, imbalance, load = model(windows[:, :-1])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()
    return loss + BALANCE * imbalance, (loss, load)


@nnx.jit
def train_step(model, optimizer, windows):
    gradients, _ = nnx.grad(loss_fn, has_aux=True)(model, windows)
    optimizer.update(model, gradients)


def sample_windows(text, rng, count):
    starts = rng.integers(0, len(text) - CONTEXT, count)
    return text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)


def train(tx, text, test_windows):
    """Returns the loss on `test_windows`, and the share of its tokens that each expert takes."""
    model, rng = LanguageModel(nnx.Rngs(0)), np.random.default_rng(0)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(STEPS):
        train_step(model, optimizer, sample_windows(text, rng, BATCH))
    return nnx.jit(loss_fn)(model, test_windows)[1]


def main():
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    text, test_text = np.split(text, [9 * len(text) // 10])
    test_windows = sample_windows(test_text, np.random.default_rng(1), 4096)
    shapes = nnx.state(nnx.eval_shape(lambda: LanguageModel(nnx.Rngs(0))))
    print(muon_jax.explain(shapes, muon_jax.muon(LEARNING_RATES["Muon"], weight_decay=0.1)))
    for name, optimizer in {"Muon": muon_jax.muon, "AdamW": optax.adamw}.items():
        schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATES[name], STEPS // 10, STEPS)
        loss, load = train(optimizer(schedule, weight_decay=0.1), text, test_windows)
        shares = ", ".join(f"{share:.0%}" for share in load)
        print(f"{name:>5}: loss {loss:.3f} nats per byte, tokens of each expert: {shares}")


if __name__ == "__main__":
    main()
