"""QK-Clip and its statistics on a mesh of eight virtual devices, Auto and Explicit.

JAX fixes the number of devices when it starts. So the first test runs this file again in a process
with eight devices, and the other tests run there.
"""

import functools
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from muon_jax.attention import max_attention_logits
from muon_jax.clip._clip_qk import clip_qk

HERE = jax.device_count() == 8
AXES = ("data", "sequence", "model")
on_eight_devices = pytest.mark.skipif(not HERE, reason="run by test_on_eight_devices")


@pytest.mark.skipif(HERE, reason="runs the others")
def test_on_eight_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    mesh = jax.make_mesh((2, 2, 2), AXES, axis_types=(request.param,) * 3)
    with jax.set_mesh(mesh):
        yield mesh


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def placed(mesh, x, *spec):
    return jax.device_put(x, jax.NamedSharding(mesh, P(*spec)))


@on_eight_devices
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_maxima_over_sharded_batch_sequence_and_heads(mesh, groups):
    query, key = normal(0, 4, 16, 4, 8), normal(1, 4, 16, groups, 8)
    mask = normal(2, 4, 1, 16, 16) < 0
    segments = jnp.sort(normal(3, 4, 16).astype(jnp.int32))
    measure = functools.partial(max_attention_logits, is_causal=True, block_size=8)
    expected = measure(query, key, mask=mask, segment_ids=segments)
    maxima = jax.jit(measure)(
        placed(mesh, query, *AXES),
        placed(mesh, key, "data", "sequence", "model" if groups > 1 else None),
        mask=placed(mesh, mask, "data", None, "sequence"),
        segment_ids=placed(mesh, segments, "data", "sequence"),
    )
    np.testing.assert_allclose(maxima, expected, rtol=1e-6)


@on_eight_devices
def test_maxima_inside_shard_map(mesh):
    query, key = normal(0, 4, 16, 4, 8), normal(1, 4, 16, 4, 8)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("data", None, "model"), out_specs=P("model"))
    def measure(query, key):
        return jax.lax.pmax(max_attention_logits(query, key, block_size=8), "data")

    spec = ("data", None, "model")
    np.testing.assert_allclose(
        measure(placed(mesh, query, *spec), placed(mesh, key, *spec)),
        max_attention_logits(query, key),
        rtol=1e-6,
    )


@on_eight_devices
@pytest.mark.parametrize("spec", [(None, "model"), ("model",), (("data", "model"),)])
def test_clipped_weights_stay_where_they_are(mesh, spec):
    names = ("query", "key")
    weights = {name: {"kernel": normal(i, 16, 4, 8)} for i, name in enumerate(names)}
    maxima = np.array([400.0, 20.0, 101.0, 99.0])
    tx: Any = clip_qk(100.0)
    expected, _ = tx.update(weights, tx.init(weights), weights, max_logits=maxima)
    sharded = jax.tree.map(lambda w: placed(mesh, w, *spec), weights)
    update = jax.jit(lambda w, state, S: tx.update(w, state, w, max_logits=S))

    start = tx.init(sharded)
    assert all(leaf.sharding.mesh == mesh for leaf in start)
    updates, state = update(sharded, start, placed(mesh, maxima, "model"))
    assert state.clipped_heads == 2
    for name in names:
        actual = updates[name]["kernel"]
        np.testing.assert_allclose(actual, expected[name]["kernel"], rtol=1e-6)
        assert actual.sharding.is_equivalent_to(sharded[name]["kernel"].sharding, 3)

    replicated = placed(mesh, maxima)
    program = update.lower(sharded, tx.init(sharded), replicated).compile().as_text() or ""
    travelling = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-|collective-|reduce-)", program)
    assert not any(travelling)  # at most the count of clipped heads, a scalar
