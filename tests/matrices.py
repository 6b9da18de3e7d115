"""Matrices with known singular values, and the exact polar factor in float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def with_spectrum(values: ArrayLike, rows: int, cols: int, seed: int = 0) -> NDArray[np.float64]:
    """Returns U diag(values) Vᵀ for random orthonormal U and V."""
    rng = np.random.default_rng(seed)
    count = min(rows, cols)
    left, _ = np.linalg.qr(rng.normal(size=(rows, count)))
    right, _ = np.linalg.qr(rng.normal(size=(cols, count)))
    return (left * np.asarray(values, np.float64)) @ right.T


def log_uniform(rows: int, cols: int, conditioning: float, seed: int = 0) -> NDArray[np.float64]:
    """Returns a matrix whose singular values run geometrically from 1 to 1/conditioning."""
    values = np.geomspace(1, 1 / conditioning, min(rows, cols))
    return with_spectrum(values, rows, cols, seed)


def gaussian(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Returns a Gaussian matrix in float32."""
    return gaussian(*shape, seed=seed).astype(np.float32)


def polar(matrix: ArrayLike) -> NDArray[np.floating]:
    """Returns the polar factor of every matrix of a batch, by SVD in float64."""
    left, _, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return left @ right


def polar_error(result: ArrayLike, matrix: ArrayLike) -> float:
    """Returns ‖result − polar(matrix)‖ / ‖polar(matrix)‖ in the Frobenius norm."""
    exact = polar(matrix)
    return float(np.linalg.norm(np.asarray(result, np.float64) - exact) / np.linalg.norm(exact))


def singular_values(matrix: ArrayLike) -> NDArray[np.floating]:
    return np.asarray(np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False))
