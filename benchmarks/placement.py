"""Computes how evenly the library's plan distributes the matrices of models over devices.

python -m benchmarks.placement
"""

import math

import numpy as np

import muon_jax
from benchmarks.measuring import table
from muon_jax.mesh._slots import plan_slots

MODELS = {
    "width 512, 6 layers": ({(512, 512): 24, (512, 2048): 12}, (8,)),
    "GPT-2 124M": ({(768, 2304): 12, (768, 768): 12, (768, 3072): 24}, (8, 32)),
    "Llama 3 8B": (
        {(4096, 4096): 64, (1024, 4096): 64, (4096, 14336): 96},
        (8, 64, 128, 256),
    ),
}
"""By name: the number of matrices of each shape, and the numbers of devices."""


def row(name: str, shapes: dict[tuple[int, int], int], devices: int) -> tuple[str, ...]:
    counts, orthogonalizer = list(shapes.values()), muon_jax.newton_schulz("keller", form="direct")
    costs = [orthogonalizer.flops(*shape) for shape in shapes]
    entries = [rows * cols for rows, cols in shapes]
    slots = plan_slots(counts, costs, devices)
    work = sum(np.multiply(each.counts, cost) for each, cost in zip(slots, costs, strict=True))
    by_shape = sum(math.ceil(n / devices) * cost for n, cost in zip(counts, costs, strict=True))
    moved = np.dot([each.each * devices for each in slots], entries)
    return (
        name,
        str(devices),
        str(sum(counts)),
        f"{np.max(work) / np.mean(work):.2f}",
        f"{by_shape / np.mean(work):.2f}",
        f"{moved / np.dot(counts, entries):.2f}",
    )


if __name__ == "__main__":
    header = (
        "model",
        "devices",
        "matrices",
        "busiest / mean",
        "each shape alone",
        "bytes / formula",
    )
    rows = [row(name, shapes, n) for name, (shapes, on) in MODELS.items() for n in on]
    print(table(header, rows))
