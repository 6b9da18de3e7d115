"""Compares time, compile time and memory of one step on a transformer with those of optax.

python -m benchmarks.step                      # 24 layers of width 256
python -m benchmarks.step --width 512          # the larger tree
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import muon_jax
from benchmarks.measuring import compile_for, conditions, interleaved, median_ratio, table
from benchmarks.models import transformer


@dataclass(frozen=True)
class Options:
    """The size of the model, and how often each step is timed."""

    layers: int = 24
    width: int = 256
    repeats: int = 9


def parameters(layers: int, width: int) -> dict[str, Any]:
    """Draws the kernels of every layer, unscanned."""
    rng = np.random.default_rng(0)
    return {
        layer: {
            name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
            for name, shape in shapes.items()
        }
        for layer, shapes in transformer(layers, width).items()
    }


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Returns optimizers by name, all with the same update rule.

    The rule is momentum 0.95 with Nesterov, updates with the RMS of AdamW's, the same weight decay
    and the same learning rate.
    """

    def ours(chunk_bytes: int | None = None, **options: Any) -> optax.GradientTransformation:
        orthogonalizer = muon_jax.newton_schulz(**options)
        return optax.chain(
            muon_jax.scale_by_muon(orthogonalizer=orthogonalizer, chunk_bytes=chunk_bytes),
            optax.add_decayed_weights(0.1),
            optax.scale_by_learning_rate(1e-3),
        )

    return {
        "optax.contrib.muon": optax.contrib.muon(1e-3, weight_decay=0.1, consistent_rms=0.2),
        "muon_jax, default": ours(),
        "muon_jax, accurate": ours(coefficients="accurate"),
        "muon_jax, keller": ours(coefficients="keller"),
        "muon_jax, bfloat16 operands": ours(dtype="bfloat16"),
        "muon_jax, default, chunks of 16 MiB": ours(chunk_bytes=2**24),
        "muon_jax, default, one stack": ours(chunk_bytes=2**40),
    }


def main(options: Options) -> None:
    params = parameters(options.layers, options.width)
    gradients = jax.tree.map(jnp.sin, params)
    compiled = {}
    for name, tx in optimizers().items():
        state = tx.init(params)

        def step(gradients: Any, state: Any, params: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        compiled[name] = compile_for(step, gradients, state, params)
    times = interleaved({name: each.call for name, each in compiled.items()}, options.repeats)
    baseline, reference = times["optax.contrib.muon"], compiled["optax.contrib.muon"]
    rows = [
        (
            name,
            f"{1e3 * np.median(times[name]):.0f} ms",
            f"{median_ratio(times[name], baseline):.2f}",
            f"{each.seconds:.1f} s",
            f"{each.seconds / reference.seconds:.2f}",
            f"{each.temporaries / 2**20:.0f} MiB",
            f"{each.temporaries / reference.temporaries:.2f}",
            each.lines,
        )
        for name, each in compiled.items()
    ]
    print(f"{options.layers} layers of width {options.width}. {conditions()}\n")
    print(
        table(("", "step", "ratio", "compile", "ratio", "temporaries", "ratio", "HLO lines"), rows)
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
