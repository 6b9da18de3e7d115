"""What the compilers of TPUs and GPUs make of a step: ours beside optax.contrib.muon.

python -m benchmarks.accelerators                  # prints the tables
python -m benchmarks.accelerators --write          # also docs/reference/accelerators.md
python -m benchmarks.accelerators --only "v5e:1x1" "(1, 512"   # programs with these words

Nothing runs on an accelerator, and none is needed. All programs take about an hour; a run that was
stopped goes on where it stopped.
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

What the compilers of Google's TPUs and NVIDIA's GPUs make of one optimizer step: `muon_jax.muon` \
beside `optax.contrib.muon`, each with its own defaults, the same parameters and the same axes of \
their matrices. A step is `update` and `apply_updates`; parameters and state are donated. \
**Nothing here ran on an accelerator**: these compilers run on any Linux machine and compile for \
devices that are only described.

## What the figures mean

- **Products** and **rest** are thousands of cycles of one TPU core, as the compiler estimates \
them: products are matrix products and what is fused with them, rest is every other operation that \
has a price. The prices of products count the passes that wider number formats take; their ratios \
can be trusted. The compiler marks the prices of the rest as invalid: they rank programs, and are \
not times. Some reshapes have no price.
- **Collectives have no price.** Their number and the bytes that one device receives stand in \
columns of their own, and the ratio of cycles leaves them out.
- Loops multiply what they repeat, and of a conditional the branch with most cycles counts. **≥** \
marks a program with a loop of unknown length, which counts as run once.
- **Ratio** is products + rest over those of optax. **Temporaries** are what one device holds \
beside inputs and outputs. **Compile** is CPU time of tracing, lowering and compiling here. \
The TPU compiler searches tiles for every distinct product, which takes most of it. A shape has \
thirteen products in ours, eight of them distinct, and fifteen in optax's, six of them distinct; \
so a single map takes longer to compile. A stack of matrices is gone through in chunks, \
as in a step.
- **Distribution.like** is `muon_jax.muon` that was told the sharding of the parameters, by \
`distribute=Distribution.like(params)`; otherwise it knows their mesh alone.
- **8 heads** is a model whose query, key and value kernels have an axis of heads. `muon_jax.muon` \
orthogonalises each head by itself, which its default scale does, and optax all of them together. \
The rows below it are its preconditioners. **recipes.strongest** is priced in a step that \
updates its eigenbases, as one in five does.
- The compiler of GPUs writes no prices: collectives, memory and compile time stand in that table.
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
    """Which programs, and where their figures go."""

    only: tuple[str, ...] = ()
    """Words of which a program's name must have one; none is all."""
    write: bool = False
    """Writes the page."""


def cells(ours: Figures, theirs: Figures) -> tuple[str, ...]:
    """Returns what one row says of a program beside that of optax."""
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
    """Returns the rows of programs for one task.

    Ours has one more with specs on eight TPUs, and one for each preconditioner with heads.
    """
    more = [OURS_BY_SPECS] if words[0] == EIGHT_TPUS else list(VARIANTS) if words == HEADS else []
    names = (THEIRS, OURS, *more, *([STRONGEST] if words == ON_OWNERS else []))
    figures = [figures_of(name_of(who, *words)) for who in names]
    return [
        (shown, who, *cells(each, figures[0])) for who, each in zip(names, figures, strict=True)
    ]


def section(title: str, topology: str, rows: Sequence[tuple[Sequence[Any], str]]) -> str:
    """Writes the table of some pairs of programs, or one line where they cannot be compiled."""
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
    jax.config.update("jax_platforms", "cpu")  # for libtpu would look for TPUs, and say so
    tables = "\n\n".join(sections(options.only))
    compilers = ", ".join(f"{name} {version(name)}" for name in ("libtpu", "jax-cuda12-plugin"))
    page = f"{HEAD}\nCompiled by {compilers}. {conditions()}\n\n{tables}\n"
    print(page)
    if options.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
