"""Ways to orthogonalise many leaves of few shapes: time, compile time, memory, program length.

python -m benchmarks.batching --width 256 --layers 24
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import muon_jax
from benchmarks.measuring import compile_for, conditions, interleaved, median_ratio, table
from muon_jax.polar._batching import orthogonalize_all

Leaves = Sequence[Any]
polar = muon_jax.newton_schulz()


@dataclass(frozen=True)
class Options:
    width: int = 256
    layers: int = 24
    repeats: int = 9


def leaf_by_leaf(leaves: Leaves) -> list[Any]:
    return [polar(leaf[None])[0] for leaf in leaves]


def in_place(leaves: Leaves, chunk_bytes: int) -> list[Any]:
    stacks = [leaf[None] for leaf in leaves]
    return [y[0] for y in orthogonalize_all(stacks, polar, chunk_bytes)]


def stacked(leaves: Leaves, run: Callable[[Any], Any]) -> list[Any]:
    """Stacks the leaves of each shape, runs on each stack, and splits it at static indices."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, leaf in enumerate(leaves):
        shapes.setdefault(leaf.shape, []).append(index)
    results: dict[int, Any] = {}
    for members in shapes.values():
        done = run(jnp.stack([leaves[index] for index in members]))
        results |= {index: done[place] for place, index in enumerate(members)}
    return [results[index] for index in range(len(leaves))]


WAYS: dict[str, Callable[[Leaves], list[Any]]] = {
    "leaf by leaf": leaf_by_leaf,
    "stack, batched product": partial(stacked, run=polar),
    "stack, lax.map": partial(stacked, run=partial(jax.lax.map, lambda x: polar(x[None])[0])),
    "in place, one at a time (CPU default)": partial(in_place, chunk_bytes=1),
    "in place, chunks of 4 MiB": partial(in_place, chunk_bytes=2**22),
    "in place, one chunk": partial(in_place, chunk_bytes=2**40),
}


def main(options: Options) -> None:
    width = options.width
    rng = np.random.default_rng(0)
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    leaves = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes * options.layers]
    compiled = {name: compile_for(way, leaves) for name, way in WAYS.items()}
    times = interleaved({name: each.call for name, each in compiled.items()}, options.repeats)
    baseline = times["leaf by leaf"]
    rows = [
        (
            name,
            f"{1e3 * np.median(times[name]):.0f} ms",
            f"{median_ratio(times[name], baseline):.2f}",
            f"{each.seconds:.1f} s",
            f"{each.temporaries / 2**20:.0f} MiB",
            each.lines,
        )
        for name, each in compiled.items()
    ]
    print(f"{len(leaves)} leaves, width {width}. {conditions()}\n")
    print(table(("", "time", "ratio", "compile", "temporaries", "HLO lines"), rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
