"""Fits a regression with Equinox, with Muon and with AdamW.

Run: python examples/regression_equinox.py  (needs equinox and scikit-learn; seconds on a CPU)

Shows: muon_jax.muon with `eqx.filter_grad` and `eqx.apply_updates`. The optimizer is initialised
with only the arrays of the model, `eqx.filter(model, eqx.is_array)`. The data are Friedman's
first regression problem: 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5, plus noise.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import make_friedman1

import muon_jax

STEPS, BATCH, WIDTH, DEPTH = 300, 128, 64, 3
# Each is the best peak learning rate of 2e-2, 4e-2, 8e-2 and 1.6e-1.
LEARNING_RATES = {"Muon": 2e-2, "AdamW": 4e-2}


def loss_fn(model, inputs, targets):
    return jnp.mean((jax.vmap(model)(inputs) - targets) ** 2)


def train(tx, inputs, targets, test_inputs, test_targets):
    """Returns the mean squared error on the test set after training from the same seed."""
    model = eqx.nn.MLP(10, "scalar", WIDTH, DEPTH, key=jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def train_step(model, state, inputs, targets):
        gradients = eqx.filter_grad(loss_fn)(model, inputs, targets)
        updates, state = tx.update(gradients, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        batch = rng.integers(0, len(inputs), BATCH)
        model, state = train_step(model, state, inputs[batch], targets[batch])
    return float(loss_fn(model, test_inputs, test_targets))


def main():
    inputs, targets = make_friedman1(4000, noise=0.1, random_state=0)
    inputs = (inputs - 0.5).astype(np.float32)
    targets = ((targets - targets.mean()) / targets.std()).astype(np.float32)
    data = inputs[:3000], targets[:3000], inputs[3000:], targets[3000:]
    for name, optimizer in {"Muon": muon_jax.muon, "AdamW": optax.adamw}.items():
        schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATES[name], STEPS // 10, STEPS)
        error = train(optimizer(schedule, weight_decay=0.1), *data)
        print(f"{name:>5}: test error {error:.5f} of the variance after {STEPS} steps")


if __name__ == "__main__":
    main()
