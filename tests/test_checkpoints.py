"""Every common format restores a state bit for bit, and training continues equally."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from covering import covering
from matrices import gaussian
from orbax.checkpoint import v1 as ocp

import muon_jax
from muon_jax.diagnostics import monitor

AXES = muon_jax.MatrixAxes(rows=-2, cols=-1)
MATRICES = {"kernel": gaussian(6, 8), "stack": gaussian(2, 4, 4, seed=1)}
MODEL = {
    "embed": {"embedding": gaussian(8, 4)},
    "attention": {
        name: {"kernel": gaussian(4, 2, 4, seed=seed)}
        for seed, name in enumerate(("query", "key", "value"))
    },
    "dense": {"kernel": gaussian(4, 8), "bias": gaussian(8)},
    "norm": {"scale": np.ones(4, np.float32)},
}
MAXIMA = {"max_logits": {"attention": np.array([400.0, 20.0], np.float32)}}
RATE = 0.1


class Case(NamedTuple):
    transform: Any
    params: Any
    dtype: Any = jnp.float32
    extra: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "scale_by_muon": Case(muon_jax.scale_by_muon(axes=AXES), MATRICES),
    "scale_by_muon, bfloat16 momentum": Case(
        muon_jax.scale_by_muon(axes=AXES, momentum_dtype="bfloat16"), MATRICES
    ),
    "scale_by_momentum_rms": Case(muon_jax.scale_by_momentum_rms(), MODEL),
    "scale_by_momentum_rms, bfloat16": Case(
        muon_jax.scale_by_momentum_rms(), MODEL, dtype=jnp.bfloat16
    ),
    "clip_qk": Case(muon_jax.clip_qk(100.0), MODEL, extra=MAXIMA),
    "muon": Case(muon_jax.muon(RATE), MODEL),
    "muon, bfloat16 momentum": Case(muon_jax.muon(RATE, momentum_dtype="bfloat16"), MODEL),
    "muon_clip": Case(muon_jax.muon_clip(RATE), MODEL, extra=MAXIMA),
    "muon_clip, bfloat16 momentum": Case(
        muon_jax.muon_clip(RATE, momentum_dtype="bfloat16"), MODEL, extra=MAXIMA
    ),
    "adamw": Case(muon_jax.adamw(RATE), MODEL),
    "adamw, float16": Case(muon_jax.adamw(RATE), MODEL, dtype=jnp.float16),
    "momentum_rms": Case(muon_jax.momentum_rms(RATE), MODEL),
    "scale_by_path": Case(
        optax.chain(muon_jax.muon(RATE), muon_jax.scale_by_path({"attention/*": 0.5})), MODEL
    ),
    "skip_nonfinite": Case(muon_jax.skip_nonfinite(muon_jax.muon(RATE)), MODEL),
    "quantize_state, int8": Case(muon_jax.quantize_state(muon_jax.muon(RATE), smallest=1), MODEL),
    "quantize_state, bfloat16": Case(
        muon_jax.quantize_state(muon_jax.muon(RATE), "bfloat16", smallest=1), MODEL
    ),
    "muon, SOAP": Case(muon_jax.muon(RATE, precondition="soap"), MODEL),
    "monitor": Case(monitor(muon_jax.muon(RATE), every=2), MODEL),
    "momentum_rms, bfloat16": Case(muon_jax.momentum_rms(RATE), MODEL, dtype=jnp.bfloat16),
}


@functools.cache
def trained(name: str) -> tuple[Any, Any, Any]:
    """Returns the parameters and state after three steps, and the compiled step."""
    case = CASES[name]
    tx = optax.with_extra_args_support(case.transform)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        gradients = jax.tree.map(lambda leaf: jnp.sin(3 * leaf), params)
        updates, state = tx.update(gradients, state, params, **case.extra)
        return optax.apply_updates(params, updates), state

    params, state = started(case)
    for _ in range(3):
        params, state = step(params, state)
    return params, state, step


def started(case: Case) -> tuple[Any, Any]:
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, case.dtype), case.params)
    return params, case.transform.init(params)


# Formats: each saves a state, and restores it into the structure of a new state.


def through_orbax(state: Any, begun: Any, folder: Path) -> Any:
    ocp.save(folder / "state", state)
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), begun
    )
    return ocp.load(folder / "state", wanted)


def through_flax_bytes(state: Any, begun: Any, folder: Path) -> Any:
    del folder
    return flax.serialization.from_bytes(begun, flax.serialization.to_bytes(state))


def through_flax_dictionaries(state: Any, begun: Any, folder: Path) -> Any:
    del folder
    plain = jax.tree.map(np.asarray, flax.serialization.to_state_dict(state))
    return flax.serialization.from_state_dict(begun, plain)


def through_msgpack(state: Any, begun: Any, folder: Path) -> Any:
    """Saves a list of arrays, each as dtype, shape and bytes, without the structure."""
    del folder
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    packed = msgpack.packb([(str(a.dtype), a.shape, a.tobytes()) for a in arrays])
    leaves = [
        np.frombuffer(content, jnp.dtype(dtype)).reshape(shape)
        for dtype, shape, content in msgpack.unpackb(packed)
    ]
    return jax.tree.unflatten(jax.tree.structure(begun), leaves)


FORMATS = [through_orbax, through_flax_bytes, through_flax_dictionaries, through_msgpack]
SAMPLE = ["scale_by_muon, bfloat16 momentum", "scale_by_momentum_rms", "clip_qk", "muon_clip"]
SAMPLE += ["muon, SOAP", "monitor", "momentum_rms, bfloat16"]


@pytest.mark.parametrize(
    ("name", "through"),
    covering(
        itertools.product(CASES, FORMATS),
        fast=[
            *itertools.product(SAMPLE, FORMATS[1:]),
            *itertools.product(("muon_clip",), FORMATS[:1]),
        ],
    ),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_restored_state_has_every_bit_and_goes_on_so(name, through: Callable, tmp_path):
    params, state, step = trained(name)
    _, begun = started(CASES[name])
    restored = through(state, begun, tmp_path)
    assert bits(restored) == bits(state) != bits(begun)
    unbroken, resumed = (params, state), (params, restored)
    for _ in range(3):
        unbroken, resumed = step(*unbroken), step(*resumed)
    assert bits(resumed) == bits(unbroken)


def bits(tree: Any) -> Any:
    """Returns the structure, dtypes, shapes and bits of a tree."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), [(a.dtype, a.shape, a.tobytes()) for a in leaves]


def test_every_public_transformation_is_among_the_cases():
    kinds = optax.GradientTransformation, optax.GradientTransformationExtraArgs
    public = {
        name
        for module in (muon_jax, muon_jax.diagnostics)
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if inspect.signature(value).return_annotation in kinds
    }
    assert public == {name.split(",")[0] for name in CASES}
