"""Defines and compiles the programs of `accelerators.py`, and caches their figures.

python -m benchmarks.programs NAME    # compiles one, and prints its figures as JSON

Every program is compiled in its own process. Its figures are cached in build/accelerators.jsonl
until the library or a compiler changes, so a run that was stopped can resume.
"""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

import muon_jax
from benchmarks.models import (
    LAYOUTS,
    Model,
    abstract,
    by_name,
    fused_transformer,
    last_two_axes,
    make_mesh,
    mixture,
    place,
    scanned,
    transformer,
    with_heads,
)
from benchmarks.rivals import optax_map
from benchmarks.topologies import (
    Figures,
    compile_program,
    compile_step,
    devices_of,
)
from muon_jax.diagnostics import Collectives
from muon_jax.polar._batching import orthogonalize_all

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "accelerators.jsonl"
LIMIT = 1800
"""Seconds after which a program counts as not compiled."""

MODELS: Mapping[str, Model] = {
    "4 layers of width 512": fused_transformer(4, 512),
    "4 layers of width 512, 8 heads": with_heads(4, 512, 8),
    "8 layers of width 512": transformer(8, 512),
    "8 layers of width 512, scanned": scanned(transformer(8, 512)),
    "2 layers of width 512, 8 experts": mixture(2, 512, 8),
    "4 layers of width 256": transformer(4, 256),
    "24 layers of width 256": transformer(24, 256),
}
ONE_TPU = "v5e:1x1"
EIGHT_TPUS = "v5e:2x4"
ONE_CHIP = "one chip"
DENSE = ("replicated", "fsdp", "tensor", "fsdp × tensor", "HSDP")
HEADS = (ONE_TPU, ONE_CHIP, "4 layers of width 512, 8 heads")
ON_OWNERS = (EIGHT_TPUS, "fsdp", "8 layers of width 512")
STEPS = [
    (ONE_TPU, ONE_CHIP, "4 layers of width 512"),
    HEADS,
    *((EIGHT_TPUS, layout, "8 layers of width 512") for layout in DENSE),
    (EIGHT_TPUS, "fsdp", "8 layers of width 512, scanned"),
    (EIGHT_TPUS, "expert", "2 layers of width 512, 8 experts"),
    ("v5e:16x16", "fsdp × tensor", "4 layers of width 256"),
    ("v5e:16x16", "fsdp × tensor", "24 layers of width 256"),
    *(("h100:8", layout, "8 layers of width 512") for layout in DENSE),
]
SHAPES = ((1, 512, 512), (1, 1024, 1024), (1, 1024, 4096), (1, 2048, 2048), (24, 1024, 1024))
THEIRS, OURS = "optax", "muon_jax"
OURS_BY_SPECS = f"Distribution.like, {OURS}"
STRONGEST = f"recipes.strongest, {OURS}"
VARIANTS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    f"recipes.best, {OURS}": muon_jax.recipes.best,
    f"SecondMoment(factored=True), {OURS}": partial(
        muon_jax.muon, precondition=muon_jax.SecondMoment(factored=True)
    ),
    STRONGEST: muon_jax.recipes.strongest,
}


def optimizer(who: str, model: str, params: Any) -> optax.GradientTransformation:
    """Returns an optimizer with its own defaults.

    On the model with heads, muon_jax routes the parameters by its default rules. On all other
    models, both libraries are told that the last two axes are a matrix.
    """
    has_heads = model == HEADS[2]
    if who == THEIRS:
        axes = by_name if has_heads else last_two_axes
        return optax.contrib.muon(0.02, muon_weight_dimension_numbers=axes)
    make = VARIANTS.get(who, muon_jax.muon)
    if has_heads:
        return make(0.02)
    return make(
        0.02,
        rules=[muon_jax.Rule("*", muon_jax.MatrixAxes(-2, -1))],
        distribute=muon_jax.Distribution.like(params) if who == OURS_BY_SPECS else "auto",
    )


def orthogonalize(who: str) -> Callable[[Any], Any]:
    """Returns the polar map of a stack as a step applies it; muon_jax processes it in chunks."""
    if who == THEIRS:
        return optax_map()
    return lambda stack: orthogonalize_all([stack], muon_jax.newton_schulz())[0]


def compile_map(who: str, shape: tuple[int, ...]) -> Figures:
    batch = place(jax.ShapeDtypeStruct(shape, "float32"), devices_of(ONE_TPU)[0])
    return compile_program(jax.jit(orthogonalize(who)), batch)


def compile_update(who: str, topology: str, layout: str, model: str) -> Figures:
    devices = devices_of(topology)
    on = None if layout == ONE_CHIP else LAYOUTS[layout]
    params = place(abstract(MODELS[model]), make_mesh(on, devices) if on else devices[0], on)
    return compile_step(optimizer(who, model, params), params, on)


def name_of(who: str, *words: Any) -> str:
    return ", ".join([*map(str, words), who])


PROGRAMS: dict[str, Callable[[], Figures]] = {}
for who in (THEIRS, OURS):
    for shape in SHAPES:
        PROGRAMS[name_of(who, "polar map", shape)] = partial(compile_map, who, shape)
for who in (THEIRS, OURS, OURS_BY_SPECS):
    for step in STEPS:
        PROGRAMS[name_of(who, *step)] = partial(compile_update, who, *step)
for who in VARIANTS:
    PROGRAMS[name_of(who, *HEADS)] = partial(compile_update, who, *HEADS)
PROGRAMS[name_of(STRONGEST, *ON_OWNERS)] = partial(compile_update, STRONGEST, *ON_OWNERS)


# Figures of one program, cached.


def record(name: str) -> dict[str, Any]:
    """Compiles a program; returns its figures, or why there are none."""
    try:
        figures = PROGRAMS[name]()
    except Exception as error:  # the table reports any error of a compiler
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    found = Collectives(figures.program.collectives)
    return {
        "kinds": {kind: each.count for kind, each in found.by_kind().items()},
        "received": found.received_bytes,
        "products": figures.program.product_cycles,
        "rest": figures.program.other_cycles,
        "uncounted": figures.program.uncounted_loops,
        "temporaries": figures.temporaries,
        "seconds": figures.seconds,
        "lines": figures.program.lines,
    }


def fingerprint(name: str) -> str:
    """Hashes the code that a program depends on; optax's depends on few modules of muon_jax."""
    reader = ROOT / "muon_jax" / "diagnostics"
    here = Path(__file__)
    sources = [reader / "_hlo.py", reader / "_trips.py", here]
    sources += [here.with_stem(name) for name in ("models", "rivals", "topologies")]
    if name.endswith(OURS):
        sources += (ROOT / "muon_jax").rglob("*.py")
    digest = hashlib.sha256()
    for source in sorted(set(sources)):
        digest.update(source.read_bytes())
    compiler = "jax-cuda12-plugin" if name.startswith("h100") else "libtpu"
    for package in ("jax", "optax", compiler):
        digest.update(version(package).encode())
    return digest.hexdigest()[:16]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def figures_of(name: str) -> dict[str, Any]:
    """Returns the cached figures of a program, or compiles it."""
    code = fingerprint(name)
    for row in map(json.loads, KEPT.read_text().splitlines() if KEPT.exists() else []):
        if (row["name"], row["code"]) == (name, code):
            return row["figures"]
    found = in_a_process(name)
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a") as file:
        file.write(
            json.dumps({"name": name, "code": code, "figures": found}, ensure_ascii=False) + "\n"
        )
    return found


def in_a_process(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.programs", name]
    print(f"compiling {name}", file=sys.stderr, flush=True)
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not compiled in {LIMIT} s"}
    if run.returncode:
        return {"failed": f"exit status {run.returncode}"}
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(record(sys.argv[1])))
