"""Trains a tiny model, and measures the process's memory after every thousand steps."""

import gc
import mmap
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import muon_jax

MEMORY_OF_THIS_PROCESS = Path("/proc/self/statm")  # exists only on Linux


class Row(NamedTuple):
    """Memory of the process after `steps` steps, in bytes, and speed of the last thousand steps."""

    steps: int
    python: int
    live: int
    arrays: int
    resident: int
    per_second: float
    per_cpu_second: float
    """Steps per second of CPU time, which other work on the machine disturbs less."""


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def model() -> dict[str, Any]:
    """Returns 10 KiB of parameters, with every kind of leaf that `muon` distinguishes."""
    return {
        "embed": {"embedding": jnp.asarray(gaussian(0, 32, 16))},
        "blocks": [
            {
                "attention": {"query": {"kernel": jnp.asarray(gaussian(seed, 16, 2, 8))}},
                "mlp": {"kernel": jnp.asarray(gaussian(seed, 16, 32))},
                "norm": {"scale": jnp.ones(16)},
            }
            for seed in range(3)
        ],
    }


def soak(thousands: int) -> list[Row]:
    """Trains for `thousands` thousand steps; the first row is from after one step."""
    tx = muon_jax.muon(1e-3)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        gradients = jax.tree.map(jnp.sin, params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = model()
    state = tx.init(params)
    params, state = step(params, state)
    tracemalloc.start()
    rows = [_row(0, float("nan"), float("nan"))]
    for thousand in range(thousands):
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(1000):
            params, state = step(params, state)
        jax.block_until_ready(params)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        rows.append(_row(1000 * (thousand + 1), 1000 / seconds, 1000 / cpu_seconds))
    tracemalloc.stop()
    return rows


def _row(steps: int, *speeds: float) -> Row:
    gc.collect()
    live = jax.live_arrays()
    python, _ = tracemalloc.get_traced_memory()
    resident = 0
    if MEMORY_OF_THIS_PROCESS.exists():
        resident = mmap.PAGESIZE * int(MEMORY_OF_THIS_PROCESS.read_text().split()[1])
    return Row(steps, python, sum(a.nbytes for a in live), len(live), resident, *speeds)
