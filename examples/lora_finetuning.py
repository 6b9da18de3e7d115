"""Fine-tunes a language model with LoRA, with Muon and with AdamW.

Run: python examples/lora_finetuning.py        (needs flax; under a minute on a CPU)

Shows: `wrt=nnx.LoRAParam` makes nnx.Optimizer train only the factors A (inputs, rank) and B (rank,
outputs), and muon_jax.muon orthogonalises the update of each factor. The model is trained on the
source code of Python's standard library and fine-tuned on the help texts in the same library.
"""

import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
import optax
from flax import nnx

import muon_jax

PRETRAINING_STEPS, STEPS, BATCH, CONTEXT, WIDTH, RANK = 300, 100, 256, 16, 128, 8
# Each is the best peak learning rate of 5e-3, 1e-2, 2e-2 and 4e-2.
LEARNING_RATES = {"Muon": 2e-2, "AdamW": 2e-2}


class LanguageModel(nnx.Module):
    """Predicts a byte from the CONTEXT bytes before it."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH // CONTEXT, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.up = nnx.List([nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs) for _ in range(2)])
        self.down = nnx.List([nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 256, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens).reshape(-1, WIDTH)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(nnx.gelu(up(norm(x))))
        return self.head(x)


def add_lora(model, rngs):
    """Wraps the linear layers of the blocks: y = x W + x A B, where B starts at zero."""
    for layers in (model.up, model.down):
        for index, layer in enumerate(layers):
            size = layer.in_features, RANK, layer.out_features
            layers[index] = nnx.LoRA(*size, base_module=layer, rngs=rngs)


def loss_fn(model, windows):
    logits = model(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, -1]).mean()


def windows_of(text, rng, count):
    starts = rng.integers(0, len(text) - CONTEXT, count)
    return text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)


def train(model, tx, wrt, text, steps):
    """Trains the variables of type `wrt` in place."""
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)

    @nnx.jit
    def train_step(model, optimizer, windows):
        gradients = nnx.grad(loss_fn, argnums=nnx.DiffState(0, wrt))(model, windows)
        optimizer.update(model, gradients)

    rng = np.random.default_rng(0)
    for _ in range(steps):
        train_step(model, optimizer, windows_of(text, rng, BATCH))


def main():
    stdlib = Path(sysconfig.get_path("stdlib"))
    code = b"".join(file.read_bytes() for file in sorted(stdlib.glob("*.py")))
    code = np.frombuffer(code, np.uint8)
    help_texts = np.frombuffer((stdlib / "pydoc_data" / "topics.py").read_bytes(), np.uint8)
    help_texts, test_text = np.split(help_texts, [9 * len(help_texts) // 10])
    test_windows = windows_of(test_text, np.random.default_rng(1), 4096)

    pretrained = LanguageModel(nnx.Rngs(0))
    schedule = optax.warmup_cosine_decay_schedule(
        0, 1e-2, PRETRAINING_STEPS // 10, PRETRAINING_STEPS
    )
    train(pretrained, muon_jax.muon(schedule), nnx.Param, code, PRETRAINING_STEPS)
    print(f"before fine-tuning: loss {loss_fn(pretrained, test_windows):.3f} nats per byte")
    # The default scale would be small for A, because A has few outputs.
    muon = partial(muon_jax.muon, scale="match_rms")
    for name, optimizer in {"Muon": muon, "AdamW": optax.adamw}.items():
        model = nnx.clone(pretrained)
        add_lora(model, nnx.Rngs(1))
        schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATES[name], STEPS // 10, STEPS)
        train(model, optimizer(schedule, weight_decay=0.0), nnx.LoRAParam, help_texts, STEPS)
        print(f"{name:>5} with LoRA: loss {loss_fn(model, test_windows):.3f} after {STEPS} steps")


if __name__ == "__main__":
    main()
