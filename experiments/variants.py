"""Variants of Muon that were tried and are not in the library."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

import muon_jax

Schedule = Callable[[Any], Float[Array, ""]]


def normalize_outputs(
    is_matrix: Callable[[Any], Any], b2: float = 0.95
) -> optax.GradientTransformation:
    """Scales updates so that all outputs of a matrix have the same average RMS, as in NorMuon.

    In an orthogonal matrix with fewer outputs than inputs, all outputs already have the same RMS.
    So only leaves of shape (inputs, outputs) with more outputs change. The norm of the whole update
    does not change.

    Args:
      is_matrix: maps the parameters to a tree of bools.
      b2: decay of the moving average of the squares.

    References:
      `NorMuon <https://arxiv.org/abs/2510.05491>`_
    """

    def chosen(tree: Any) -> Any:
        return jax.tree.map(
            lambda yes, leaf: bool(yes) and leaf.ndim == 2 and leaf.shape[1] > leaf.shape[0],
            is_matrix(tree),
            tree,
        )

    def init(params: Any) -> Any:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[-1:]), params)
        return jnp.zeros((), jnp.int32), zeros

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count, moments = state[0] + 1, state[1]

        def step(yes: bool, leaf: Array, moment: Array) -> tuple[Array, Array]:
            if not yes:
                return leaf, moment
            norm = jnp.linalg.norm(leaf)
            unit = leaf * jnp.sqrt(leaf.size) / jnp.maximum(norm, 1e-30)
            moment = b2 * moment + (1 - b2) * jnp.mean(jnp.square(unit), axis=0)
            scaled = unit / (jnp.sqrt(moment / (1 - b2**count)) + 1e-8)[None]
            return scaled * norm / jnp.maximum(jnp.linalg.norm(scaled), 1e-30), moment

        both = jax.tree.map(step, chosen(updates), updates, moments)
        new, moments = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0, 0)), both
        )
        return new, (count, moments)

    return optax.GradientTransformation(init, update)


def decay_matrices(
    decay: Schedule, is_matrix: Callable[[Any], Any], *, cautious: bool
) -> optax.GradientTransformation:
    """Applies weight decay to the matrices.

    Args:
      decay: maps the step count to the fraction that is subtracted.
      is_matrix: maps the parameters to a tree of bools.
      cautious: True decays only entries that the update moves towards zero anyway.

    References:
      `Cautious weight decay <https://arxiv.org/abs/2510.12402>`_
    """

    def update(updates: Any, count: Any, params: Any = None) -> tuple[Any, Any]:
        def step(yes: bool, leaf: Array, weight: Array) -> Array:
            taken = decay(count) * weight
            if cautious:
                taken = jnp.where(leaf * weight < 0, taken, 0)
            return leaf - taken if yes else leaf

        return jax.tree.map(step, is_matrix(params), updates, params), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def look_ahead(
    optimizer: optax.GradientTransformation, decay: float, steps: float
) -> optax.GradientTransformation:
    """Takes gradients at a point ahead of the parameters θ: EMA-Nesterov.

    The tree that is trained is this point, θ + steps · v, where v is the moving average of the
    updates of θ. The two points meet if the learning rate decays to zero.

    Args:
      optimizer: computes the updates of θ.
      decay: the decay of the moving average.
      steps: how many average updates to look ahead.

    References:
      `EMA-Nesterov <https://arxiv.org/abs/2605.25395>`_
    """

    def init(params: Any) -> Any:
        return optimizer.init(params), jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        inner, old = state
        here = jax.tree.map(lambda ahead, v: ahead - steps * v, params, old)
        own, inner = optimizer.update(updates, inner, here)
        new = jax.tree.map(lambda v, u: decay * v + (1 - decay) * u, old, own)
        moved = jax.tree.map(lambda u, was, now: u + steps * (now - was), own, old, new)
        return moved, (inner, new)

    return optax.GradientTransformation(init, update)


class SoapInBfloat16(muon_jax.Soap):
    """Soap with the products that TPUs compute in one pass: bfloat16 operands, float32 sums."""

    def _product(self, left: Array, right: Array) -> Array:
        left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
        return jnp.matmul(left, right, preferred_element_type=jnp.float32)
