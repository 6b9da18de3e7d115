"""Compiles a step for TPUs and GPUs, and compares its cost with that of optax.contrib.muon.

python -m benchmarks.accelerators                  # prints the tables
python -m benchmarks.accelerators --write          # also docs/reference/accelerators.md
python -m benchmarks.accelerators --only "v5e:1x1" "(1, 512"   # names that contain one of these

Nothing runs on an accelerator, and none is needed. Compiling all programs takes about an hour. A
run that was stopped resumes where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro

from benchmarks.measuring import conditions, table
from benchmarks.programs import (
    EIGHT_TPUS,
    HEADS,
    ON_OWNERS,
    ONE_TPU,
    OURS,
    OURS_BY_SPECS,
    SHAPES,
    STEPS,
    STRONGEST,
    THEIRS,
    VARIANTS,
    figures_of,
    name_of,
    version,
)
from benchmarks.topologies import UnavailableError, devices_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "accelerators.md"
HEAD = """# On TPUs and GPUs, as their compilers see it

What the compilers of Google's TPUs and NVIDIA's GPUs report about one optimizer step. \
`muon_jax.muon` is compared with `optax.contrib.muon`, each with its own defaults, on the same \
parameters with the same matrix axes. A step is `update` and `apply_updates`; parameters and state \
are donated. **Nothing here ran on an accelerator**: these compilers run on any Linux machine and \
compile from a description of the devices.

## What the figures mean

- **Products** and **rest** are thousands of cycles of one TPU core, as the compiler estimates \
them. Products are matrix products and the operations fused with them; rest is every other \
operation that has an estimate. The estimates of products count the passes that wider number \
formats need, so their ratios can be trusted. The compiler marks the estimates of the rest as \
invalid: they rank programs, but they are not times. Some reshapes have no estimate.
- **Collectives have no estimate.** Their number and the bytes that one device receives have their \
own columns, and the ratio of cycles excludes them.
- The cycles of a loop body are multiplied by the number of iterations. Of a conditional, the \
branch with the most cycles counts. **≥** marks a program with a loop of unknown length; the body \
of that loop counts once.
- **Ratio** is products + rest, divided by the same sum for optax. **Temporaries** are the memory \
of one device besides inputs and outputs. **Compile** is the CPU time of tracing, lowering and \
compiling on the machine named below. The TPU compiler searches tile sizes for every distinct \
product, which takes most of that time. For one shape, muon_jax has thirteen products, five of \
them distinct, and optax has fifteen, six of them distinct. Where a product runs during an \
all-gather, as in the replicated layout, the compiler makes one more kernel of it. A stack of \
matrices is processed in chunks, as in a step.
- **Distribution.like** is `muon_jax.muon` with `distribute=Distribution.like(params)`, which \
gives it the sharding of the parameters. Without it, `muon_jax.muon` knows only their mesh.
- **8 heads** is a model whose query, key and value kernels have an axis of heads. `muon_jax.muon` \
with its default scale orthogonalises each head separately; optax orthogonalises all heads \
together. The rows below it are muon_jax with preconditioners. The figures of \
**recipes.strongest** are of a step that updates its eigenbases, which one step in five does.
- The GPU compiler writes no estimates, so its table has collectives, memory and compile time only.
"""
TITLES = {
    ONE_TPU: "One TPU v5e",
    EIGHT_TPUS: "Eight TPUs v5e (2 × 4)",
    "v5e:16x16": "256 TPUs v5e (16 × 16)",
    "h100:8": "Eight H100",
}
COLUMNS = ("collectives", "MiB received", "products", "rest", "ratio", "temporaries, MiB")
COLUMNS += ("compile, s", "ratio", "HLO lines")

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """Which programs to compile, and whether to write the page."""

    only: tuple[str, ...] = ()
    """Compile the programs whose name contains one of these. Default: all."""
    write: bool = False
    """Also write docs/reference/accelerators.md."""


def cells(ours: Figures, theirs: Figures) -> tuple[str, ...]:
    """Returns the cells of one row: a program's figures, and their ratios to those of optax."""
    if "failed" in ours:
        return (ours["failed"], *("–",) * (len(COLUMNS) - 1))
    kinds = ", ".join(f"{count} {kind}" for kind, count in ours["kinds"].items())
    at_least = "≥ " if ours["uncounted"] else ""
    priced = ours["products"] > 0
    return (
        kinds or "none",
        f"{ours['received'] / 2**20:.1f}",
        f"{at_least}{ours['products'] / 1e3:.0f}" if priced else "–",
        f"{at_least}{ours['rest'] / 1e3:.0f}" if priced else "–",
        ratio(cycles(ours), cycles(theirs)),
        f"{ours['temporaries'] / 2**20:.1f}",
        f"{ours['seconds']:.1f}",
        ratio(ours["seconds"], theirs.get("seconds", 0)),
        str(ours["lines"]),
    )


def cycles(figures: Figures) -> float:
    return figures.get("products", 0) + figures.get("rest", 0)


def ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if ours and theirs else "–"


def rows_of(words: Sequence[Any], shown: str) -> list[tuple[str, ...]]:
    """Returns the rows of all programs for one task.

    muon_jax has one more row, with specs, on eight TPUs. On the model with heads it has one more
    row for each preconditioner.
    """
    more = [OURS_BY_SPECS] if words[0] == EIGHT_TPUS else list(VARIANTS) if words == HEADS else []
    names = (THEIRS, OURS, *more, *([STRONGEST] if words == ON_OWNERS else []))
    figures = [figures_of(name_of(who, *words)) for who in names]
    return [
        (shown, who, *cells(each, figures[0])) for who, each in zip(names, figures, strict=True)
    ]


def section(title: str, topology: str, rows: Sequence[tuple[Sequence[Any], str]]) -> str:
    """Returns the table of some programs, or one line if they cannot be compiled here."""
    try:
        devices_of(topology)
    except UnavailableError as error:
        return f"## {title}\n\n{error}."
    cells = [row for words, shown in rows for row in rows_of(words, shown)]
    return f"## {title}\n\n{table(('', '', *COLUMNS), cells)}"


def sections(only: Sequence[str]) -> Iterator[str]:
    def wanted(*words: Any) -> bool:
        return not only or any(word in name_of("", *words) for word in only)

    maps = [
        (("polar map", shape), " × ".join(map(str, shape)))
        for shape in SHAPES
        if wanted("polar map", shape)
    ]
    if maps:
        yield section("Polar maps on one TPU v5e", ONE_TPU, maps)
    for topology, title in TITLES.items():
        steps = [
            (step, f"{step[2]}, {step[1]}")
            for step in STEPS
            if step[0] == topology and wanted(*step)
        ]
        if steps:
            yield section(title, topology, steps)


def main(options: Options) -> None:
    jax.config.update("jax_platforms", "cpu")  # otherwise libtpu looks for TPUs and logs it
    tables = "\n\n".join(sections(options.only))
    compilers = ", ".join(f"{name} {version(name)}" for name in ("libtpu", "jax-cuda12-plugin"))
    page = f"{HEAD}\nCompiled by {compilers}. {conditions()}\n\n{tables}\n"
    print(page)
    if options.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
