"""Compares muon_jax with optax.contrib.muon on JAX's accelerator, in at most five minutes.

python -m benchmarks.device >> results.md

Needs only JAX with a GPU or a TPU, optax and this package. Prints Markdown tables of polar maps and
of one step of 12 layers of width 1024 and 2048. Times are medians of interleaved rounds.
Temporaries are the memory that the compiled program needs besides its inputs and outputs. Compile
is wall time.

python -m benchmarks.device --shapes 1x32x32 --widths 32 --layers 1   # a trial on a CPU
"""

import argparse
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import muon_jax
from benchmarks.measuring import conditions, interleaved, median_ratio, table
from benchmarks.models import abstract, last_two_axes, transformer
from benchmarks.rivals import optax_map

SHAPES = ("1x512x512", "1x1024x1024", "1x1024x4096", "1x2048x2048", "24x1024x1024")
WIDTHS = (1024, 2048)
THEIRS = "optax"
FORMATS = ("bfloat16", "float32")
ROUNDS = 20
STEP_WEIGHT = 4
"""Time budget of a step, divided by that of a polar map."""
HEADER = ("time, ms", "ratio", "rounds", "temporaries, MiB", "compile, s")


def orthogonalizers() -> dict[str, Callable[[Any], Any]]:
    ours = {f"muon_jax, {each}": muon_jax.newton_schulz(dtype=each) for each in FORMATS}
    return {THEIRS: optax_map(), **ours}


def optimizers() -> dict[str, optax.GradientTransformation]:
    ours = {
        name: muon_jax.muon(1e-3, orthogonalizer=orthogonalizer)
        for name, orthogonalizer in orthogonalizers().items()
        if name != THEIRS
    }
    return {
        THEIRS: optax.contrib.muon(1e-3, muon_weight_dimension_numbers=last_two_axes),
        **ours,
    }


def normal(shapes: Any) -> Any:
    """Returns a tree of normally distributed arrays of the given shapes."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    return structure.unflatten(
        draw(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)
    )


def measure(
    jitted: Mapping[str, Any],
    prepare: Callable[[str], Sequence[Any]],
    seconds: float,
) -> str:
    """Compiles functions that do the same work, times them in turn and returns a table.

    Args:
        jitted: by name; the first is the baseline.
        prepare: makes the arguments of the function of that name, which may donate them.
        seconds: time budget. A function is skipped if compiling it would probably use it up.
    """
    began = time.perf_counter()
    calls, rows, longest = {}, {}, 0.0
    for name, function in jitted.items():
        spent = time.perf_counter() - began
        if spent + longest > 0.8 * seconds:
            rows[name] = ("no time left to compile", *("–",) * (len(HEADER) - 1))
            continue
        try:
            program = function.lower(*prepare(name)).compile()
            longest = max(longest, compiling := time.perf_counter() - began - spent)
            jax.block_until_ready(program(*prepare(name)))
        except jax.errors.JaxRuntimeError as error:
            rows[name] = (str(error).splitlines()[0], *("–",) * (len(HEADER) - 1))
            continue
        temporaries = program.memory_analysis().temp_size_in_bytes
        calls[name] = lambda *given, run=program: jax.block_until_ready(run(*given))
        rows[name] = (f"{temporaries / 2**20:.0f}", f"{compiling:.1f}")
    left = seconds - (time.perf_counter() - began)
    times = interleaved(calls, ROUNDS, prepare, left) if calls else {}
    baseline = times.get(next(iter(jitted)))
    for name, each in times.items():
        ratio = "–" if baseline is None else f"{median_ratio(each, baseline):.2f}"
        rows[name] = (f"{1e3 * np.median(each):.3g}", ratio, str(len(each)), *rows[name])
    return table(("", *HEADER), [(name, *rows[name]) for name in jitted])


def measure_maps(shape: tuple[int, ...], seconds: float) -> str:
    batch = normal(jax.ShapeDtypeStruct(shape, "float32"))
    jitted = {name: jax.jit(each) for name, each in orthogonalizers().items()}
    return measure(jitted, lambda name: (batch,), seconds)


def measure_steps(layers: int, width: int, seconds: float) -> str:
    gradients = normal(abstract(transformer(layers, width)))
    txs = optimizers()
    inits = {name: jax.jit(tx.init) for name, tx in txs.items()}

    def prepare(name: str) -> tuple[Any, Any, Any]:
        """Makes new state and parameters, because a step donates them."""
        params = jax.tree.map(jnp.copy, gradients)
        return jax.block_until_ready((gradients, inits[name](params), params))

    def step(tx: Any, gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    jitted = {
        name: jax.jit(functools.partial(step, tx), donate_argnums=(1, 2))
        for name, tx in txs.items()
    }
    return measure(jitted, prepare, seconds)


def stop() -> None:
    print("The time is up.", flush=True)
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="shapes of the polar maps")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--seconds", type=float, default=270, help="time for all tables, at most 30 more"
    )
    options = parser.parse_args(arguments)
    device = jax.devices()[0]
    if device.platform == "cpu" and (options.shapes is SHAPES or options.widths is WIDTHS):
        print("device.py: JAX found no accelerator; give small --shapes and --widths for a CPU")
        return 2
    end = time.perf_counter() + options.seconds
    guard = threading.Timer(options.seconds + 30, stop)  # a compilation cannot be interrupted
    guard.daemon = True
    guard.start()
    print(f"# {device.device_kind}\n\n{conditions()}\n", flush=True)
    jobs = [
        (f"Polar map, {shape}", functools.partial(measure_maps, tuple(map(int, shape.split("x")))))
        for shape in options.shapes
    ]
    for width in options.widths:
        name = f"Step, {options.layers} layers of width {width}"
        jobs.append((name, functools.partial(measure_steps, options.layers, width)))
    weights = [1] * len(options.shapes) + [STEP_WEIGHT] * len(options.widths)
    for index, (name, job) in enumerate(jobs):
        share = weights[index] / sum(weights[index:])
        print(f"## {name}\n\n{job(share * (end - time.perf_counter()))}\n", flush=True)
    guard.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
