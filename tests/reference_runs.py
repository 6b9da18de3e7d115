"""The training run of all references, and the references in NumPy.

Matrices have PyTorch's layout, (outputs, inputs). The gradients do not depend on the weights,
so two optimizers differ only by their method and by rounding, not because trajectories diverge.
"""

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
from matrices import gaussian
from numpy.typing import NDArray

Array = NDArray[np.floating]
Rounding = Callable[[Array], Array]

STEPS = 20
HALFWAY = 10
RATE = 0.02
ADAM_RATE = 0.01
DECAY = 0.1
MOMENTUM = 0.95

# "large" has a short side of 64. Below 64, muon_jax always multiplies in float32.
MATRICES = ("wide", "tall", "square", "large")
SHAPES = {
    "wide": (16, 40),
    "tall": (40, 16),
    "square": (24, 24),
    "large": (72, 64),
    "filters": (10, 4, 3, 3),
    "stack": (2, 10, 14),
    "vector": (24,),
}

QUINTIC = (3.4445, -4.7750, 2.0315)


def weights() -> dict[str, NDArray[np.float32]]:
    return {name: _normal(name, 0) for name in SHAPES}


def gradients(step: int) -> dict[str, NDArray[np.float32]]:
    """Returns gradients with a constant part and a random part, so that momentum matters."""
    return {name: _normal(name, 1) + _normal(name, 2 + step) for name in SHAPES}


def gradients_of(name: str) -> list[NDArray[np.float32]]:
    return [gradients(step)[name] for step in range(STEPS)]


def _normal(name: str, number: int) -> NDArray[np.float32]:
    seed = 100 * list(SHAPES).index(name) + number
    return gaussian(*SHAPES[name], seed=seed).astype(np.float32)


def exact(values: Array) -> Array:
    return values


def to_bfloat16(values: Array) -> Array:
    """Rounds to bfloat16."""
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def newton_schulz(matrix: Array, rounded: Rounding = exact, fused: bool = True) -> Array:
    """Five quintic steps on a matrix divided by its Frobenius norm.

    Args:
      matrix: a matrix, or a batch of them.
      rounded: the rounding of every result that the reference stores.
      fused: whether c₁A + c₂A² and c₀X + BX are rounded once, as in torch.optim.Muon. The two
        other sources round every term.
    """
    linear, cubic, quintic = QUINTIC
    partly = exact if fused else rounded
    X = rounded(np.asarray(matrix, np.float64))
    tall = X.shape[-2] > X.shape[-1]
    X = X.swapaxes(-1, -2) if tall else X
    X = rounded(X / rounded(np.linalg.norm(X, axis=(-2, -1), keepdims=True)))
    for _ in range(5):
        A = rounded(X @ X.swapaxes(-1, -2))
        B = rounded(partly(cubic * A) + partly(partly(quintic * A) @ A))
        X = rounded(partly(linear * X) + partly(B @ X))
    return X.swapaxes(-1, -2) if tall else X


def muon(
    start: Array,
    gradients: Sequence[Array],
    *,
    factor: float,
    polar: Callable[[Array], Array] = newton_schulz,
    momentum: float = MOMENTUM,
    nesterov: bool = True,
    heavy_ball: bool = False,
    rate: float = RATE,
    decay: float = DECAY,
) -> Array:
    """Trains one weight by Muon in float64, with the formulas of the sources.

    Args:
      start: the weight, a matrix in its last two axes, or a bank of filters.
      gradients: one for each step.
      factor: multiplies the orthogonal update.
      polar: the map to the polar factor.
      momentum: the decay of the buffer.
      nesterov: whether to add the gradient once more.
      heavy_ball: whether to take the sum B ← μB + G, not the average B ← μB + (1 − μ)G.
      rate: the learning rate.
      decay: decoupled weight decay.
    """
    weight = np.asarray(start, np.float64)
    buffer = np.zeros_like(weight)
    share = 1.0 if heavy_ball else 1 - momentum
    for gradient in gradients:
        buffer = momentum * buffer + share * gradient
        direction = momentum * buffer + share * gradient if nesterov else buffer
        flat = direction.reshape(len(direction), -1) if direction.ndim == 4 else direction
        update = factor * polar(flat).reshape(weight.shape)
        weight = weight - rate * (update + decay * weight)
    return weight


def adam(
    start: Array,
    gradients: Sequence[Array],
    *,
    second: float = 0.95,
    eps: float = 1e-8,
    rate: float = ADAM_RATE,
    decay: float = DECAY,
) -> Array:
    """Trains one weight by AdamW with a first decay of 0.9, in float64."""
    weight = np.asarray(start, np.float64)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = second * square + (1 - second) * gradient.astype(np.float64) ** 2
        update = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - second**step)) + eps)
        weight = weight - rate * (update + decay * weight)
    return weight


def distance(found: Array, expected: Array, start: Array) -> float:
    """Returns the distance of two final weights, relative to the second's from its start."""
    found, expected, start = (np.asarray(array, np.float64) for array in (found, expected, start))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - start))
