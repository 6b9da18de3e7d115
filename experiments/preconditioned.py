"""Muon on a preconditioned momentum: Muon² and SOAP-Muon, for the kernels of the decoder.

Muon² (arXiv 2604.09967) divides the momentum by the root of a second moment, element by element.
SOAP-Muon does so in the eigenbases of both Gram matrices of the gradient, as SOAP (Vyas et al.
2024, arXiv 2409.11321) does, rotates back, and then takes the polar factor.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

import muon_jax
from muon_jax.trees._paths import map_named, named_leaves

MOMENTUM = 0.95
SECOND_MOMENT = 0.95  # decay of Muon²'s
SOAP_MOMENT = 0.9  # decay of SOAP's, and of its Gram matrices
BASIS_EVERY = 5  # steps; every step among the first ten
RMS = 0.2

Stack = Float[Array, "batch rows cols"]
Stacks = Mapping[tuple[int, int], Stack]
"""All kernels as matrices, stacked by their shape."""


class Basis(NamedTuple):
    """Gram matrices of the gradients and their eigenvectors."""

    gram: Float[Array, "batch size size"]
    vectors: Float[Array, "batch size size"]


class PreconditionedState(NamedTuple):
    steps: Int[Array, ""]
    momentum: Stacks
    second: Stacks
    left: Mapping[tuple[int, int], Basis]
    right: Mapping[tuple[int, int], Basis]


def scale_by_preconditioned_muon(kind: str) -> optax.GradientTransformation:
    """Makes Muon with `kind` second_moment (Muon²) or soap (SOAP-Muon), and the scale match_rms."""
    polar = muon_jax.newton_schulz()

    def init(params: Any) -> PreconditionedState:
        zeros = jax.tree.map(jnp.zeros_like, _stacked(params))
        soap = zeros if kind == "soap" else {}
        return PreconditionedState(
            jnp.zeros([], jnp.int32),
            zeros,
            zeros,
            {shape: _identity(len(stack), shape[0]) for shape, stack in soap.items()},
            {shape: _identity(len(stack), shape[1]) for shape, stack in soap.items()},
        )

    def update(
        updates: Any, state: PreconditionedState, params: Any = None
    ) -> tuple[Any, PreconditionedState]:
        del params
        grads = _stacked(updates)
        count = state.steps
        momentum, second, left, right, solved = {}, {}, {}, {}, {}
        for shape, grad in grads.items():
            m = MOMENTUM * state.momentum[shape] + (1 - MOMENTUM) * grad
            direction = MOMENTUM * m + (1 - MOMENTUM) * grad
            if kind == "soap":
                bases = (
                    _rotated(state.left[shape], grad, count),
                    _rotated(state.right[shape], grad.mT, count),
                )
                left[shape], right[shape] = bases
                p, q = bases[0].vectors, bases[1].vectors
                inside = p.mT @ direction @ q
                v = _ema(state.second[shape], jnp.square(inside), SOAP_MOMENT)
                direction = p @ _over_root(inside, v, SOAP_MOMENT, count) @ q.mT
            else:
                v = _ema(state.second[shape], jnp.square(grad), SECOND_MOMENT)
                direction = _over_root(direction, v, SECOND_MOMENT, count)
            momentum[shape], second[shape] = m, v
            solved[shape] = RMS * math.sqrt(max(shape)) * polar(direction)
        new = PreconditionedState(count + 1, momentum, second, left, right)
        return _unstacked(solved, updates), new

    return optax.GradientTransformation(init, update)


def _ema(old: Stack, new: Stack, decay: float) -> Stack:
    return decay * old + (1 - decay) * new


def _over_root(x: Stack, second: Stack, decay: float, count: Int[Array, ""]) -> Stack:
    return x / (jnp.sqrt(second / (1 - decay ** (count + 1.0))) + 1e-12)


def _rotated(basis: Basis, grad: Stack, count: Int[Array, ""]) -> Basis:
    """Averages the Gram matrix of the rows, and follows its eigenvectors by a step of QR."""
    gram = SOAP_MOMENT * basis.gram + (1 - SOAP_MOMENT) * grad @ grad.mT
    due = (count % BASIS_EVERY == 0) | (count < 10)
    vectors = jax.lax.switch(
        jnp.where(count < 1, 0, jnp.where(due, 1, 2)),
        [
            lambda: jnp.linalg.eigh(gram)[1][..., ::-1],
            lambda: jnp.linalg.qr(gram @ basis.vectors)[0],
            lambda: basis.vectors,
        ],
    )
    return Basis(gram, vectors)


def _identity(batch: int, size: int) -> Basis:
    return Basis(
        jnp.zeros((batch, size, size)), jnp.broadcast_to(jnp.eye(size), (batch, size, size))
    )


def _as_matrix(path: str, leaf: Array) -> Float[Array, "rows cols"]:
    return leaf.reshape(-1, leaf.shape[-1]) if "out" in path else leaf.reshape(len(leaf), -1)


def _stacked(tree: Any) -> dict[tuple[int, int], Stack]:
    groups: dict[tuple[int, int], list[Array]] = {}
    for path, leaf in named_leaves(tree):
        matrix = _as_matrix(path, leaf)
        groups.setdefault(matrix.shape, []).append(matrix)
    return {shape: jnp.stack(matrices) for shape, matrices in groups.items()}


def _unstacked(stacks: Stacks, like: Any) -> Any:
    matrices = {shape: iter(stack) for shape, stack in stacks.items()}
    return map_named(
        lambda path, leaf: next(matrices[_as_matrix(path, leaf).shape]).reshape(leaf.shape), like
    )
