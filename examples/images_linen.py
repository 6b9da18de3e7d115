"""Classifies images with Flax Linen and TrainState, with Muon and with AdamW.

Run: python examples/images_linen.py        (needs flax and scikit-learn; under a minute on a CPU)

Shows: muon_jax.muon as the `tx` of a TrainState. A convolution kernel of shape (height, width,
inputs, outputs) is one matrix for Muon, with height * width * inputs rows. The first convolution,
the output head, the biases and the norms go to AdamW. The images are scikit-learn's 8 x 8 digits,
which are easy: the results of the two optimizers differ by a few of the 360 test images.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import muon_jax

STEPS, BATCH, WIDTH = 100, 64, 16
# Each is the best peak learning rate of 5e-3, 1e-2, 2e-2, 4e-2 and 8e-2.
LEARNING_RATES = {"Muon": 8e-2, "AdamW": 4e-2}


class ConvolutionalNetwork(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (3, 3), name="stem")(images)
        for index, stride in enumerate((1, 2, 2)):
            x = nn.Conv(WIDTH * 2**index, (3, 3), stride, use_bias=False, name=f"conv_{index}")(x)
            x = nn.gelu(nn.LayerNorm(name=f"norm_{index}")(x))
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


def loss_fn(params, apply_fn, images, labels):
    logits = apply_fn({"params": params}, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits.argmax(-1) == labels).mean()


@jax.jit
def train_step(state, images, labels):
    gradients = jax.grad(loss_fn, has_aux=True)(state.params, state.apply_fn, images, labels)[0]
    return state.apply_gradients(grads=gradients)


def train(tx, train_set, test_set):
    """Returns the loss and the accuracy on the test set after training from the same seed."""
    network = ConvolutionalNetwork()
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
    rng = np.random.default_rng(0)
    images, labels = train_set
    for _ in range(STEPS):
        batch = rng.integers(0, len(labels), BATCH)
        state = train_step(state, images[batch], labels[batch])
    loss, accuracy = jax.jit(loss_fn, static_argnums=1)(state.params, state.apply_fn, *test_set)
    return float(loss), float(accuracy)


def main():
    digits = load_digits()
    images = (digits.images[..., None] / 16 - 0.5).astype(np.float32)
    labels = digits.target.astype(np.int32)
    is_test = np.arange(len(labels)) % 5 == 0
    train_set, test_set = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
    for name, optimizer in {"Muon": muon_jax.muon, "AdamW": optax.adamw}.items():
        schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATES[name], STEPS // 10, STEPS)
        loss, accuracy = train(optimizer(schedule, weight_decay=0.1), train_set, test_set)
        print(f"{name:>5}: test loss {loss:.3f}, accuracy {accuracy:.1%} after {STEPS} steps")


if __name__ == "__main__":
    main()
