"""Every public transformation with suitable parameters, for tests of all transformations."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from matrices import gaussian

import muon_jax
from muon_jax import recipes


class Case(NamedTuple):
    factory: Callable[..., Any]
    hyperparameter: str  # the argument whose value `make` sets
    params: Any
    arguments: Mapping[str, Any] = MappingProxyType({})
    extra_args: Mapping[str, Any] = MappingProxyType({})  # further arguments of `update`
    takes_schedule: bool = True

    def make(self, value: Any = 0.1) -> optax.GradientTransformationExtraArgs:
        tx = self.factory(**{self.hyperparameter: value}, **self.arguments)
        return optax.with_extra_args_support(tx)


def muon_that_skips(learning_rate: Any) -> optax.GradientTransformation:
    return muon_jax.skip_nonfinite(muon_jax.muon(learning_rate))


def muon_in_8_bits(learning_rate: Any) -> optax.GradientTransformation:
    return muon_jax.quantize_state(muon_jax.muon(learning_rate), smallest=1)


MATRICES = {
    "kernel": jnp.asarray(gaussian(6, 8), jnp.float32),
    "stack": jnp.asarray(gaussian(2, 4, 4, seed=1), jnp.float32),
}
MODEL = {
    "embed": {"embedding": jnp.asarray(gaussian(8, 4), jnp.float32)},
    "dense": {
        "kernel": jnp.asarray(gaussian(4, 6), jnp.float32),
        "bias": jnp.asarray(gaussian(6), jnp.float32),
    },
    "norm": {"scale": jnp.ones(4)},
}
ATTENTION = {
    "attn": {
        name: {"kernel": jnp.asarray(gaussian(4, 2, 3, seed=seed), jnp.float32)}
        for seed, name in enumerate(("query", "key", "value"))
    },
    "norm": {"scale": jnp.ones(4)},
}
# With a threshold of 0.1 one head is clipped and the other is not.
LOGITS = MappingProxyType({"max_logits": {"attn": jnp.array([0.4, 0.05])}})
AXES = muon_jax.MatrixAxes(rows=-2, cols=-1)
HEADS = muon_jax.MatrixAxes(rows=0, cols=(1, 2))

CASES = MappingProxyType(
    {
        "scale_by_muon": Case(muon_jax.scale_by_muon, "momentum", MATRICES, {"axes": AXES}),
        "muon": Case(muon_jax.muon, "learning_rate", MODEL),
        "recipes.best": Case(recipes.best, "learning_rate", MODEL),
        "recipes.strongest": Case(recipes.strongest, "learning_rate", MODEL),
        "adamw": Case(muon_jax.adamw, "learning_rate", MODEL),
        "muon_clip": Case(
            muon_jax.muon_clip,
            "learning_rate",
            ATTENTION,
            {"threshold": 0.1, "rules": (muon_jax.Rule("attn/*", HEADS),)},  # for masked trees
            LOGITS,
        ),
        "clip_qk": Case(
            muon_jax.clip_qk, "threshold", ATTENTION, extra_args=LOGITS, takes_schedule=False
        ),
        "scale_by_momentum_rms": Case(
            muon_jax.scale_by_momentum_rms, "momentum", MODEL, takes_schedule=False
        ),
        "momentum_rms": Case(muon_jax.momentum_rms, "learning_rate", MODEL),
        "recipes.optax": Case(recipes.optax, "learning_rate", MODEL),
        "skip_nonfinite": Case(muon_that_skips, "learning_rate", MODEL),
        "quantize_state": Case(muon_in_8_bits, "learning_rate", MODEL),
    }
)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

IN_FULL = ("scale_by_muon", "muon_clip")
each_case_in_full = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in IN_FULL else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
"""Two transformations, one of matrices and one of whole models; the others are slow."""

# Rounding in float32, 6e-8, times the slope of the default schedule at small singular values, 319.
ROUNDING = 1e-4


def gradients(params: Any, step: Any = 0) -> Any:
    return jax.tree.map(lambda leaf: jnp.sin(leaf * (step + 2)).astype(leaf.dtype), params)


def train(tx: Any, params: Any, extra_args: Mapping[str, Any], steps: int = 3) -> Any:
    """Returns the parameters after some compiled steps."""

    @jax.jit
    def step(params, state, index):
        updates, state = tx.update(gradients(params, index), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for index in range(steps):
        params, state = step(params, state, jnp.float32(index))
    return params


@functools.cache
def _trained(name: str) -> Any:
    case = CASES[name]
    return train(case.make(), case.params, case.extra_args)


def trained(case: Case) -> Any:
    """Returns the parameters of a case after three steps; cached."""
    return _trained(next(name for name, known in CASES.items() if known is case))
