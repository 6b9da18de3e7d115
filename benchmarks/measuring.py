"""Measures compiled costs exactly, and times in interleaved rounds and as ratios."""

import datetime
import importlib.metadata
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Compiled:
    """One function compiled for its arguments, and its costs.

    Attributes:
      call: runs it on the arguments and waits for the result.
      seconds: CPU time of tracing, lowering and compiling.
      flops: as XLA counts them; the body of a loop counts once.
      temporaries: bytes that the program needs besides its inputs and outputs.
      lines: length of the optimized HLO.
    """

    call: Callable[[], Any]
    seconds: float
    flops: float
    temporaries: int
    lines: int


def compile_for(function: Callable[..., Any], *arguments: Any) -> Compiled:
    jax.clear_caches()
    began = time.process_time()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.process_time() - began
    memory = compiled.memory_analysis()
    return Compiled(
        call=lambda: jax.block_until_ready(compiled(*arguments)),
        seconds=seconds,
        flops=(compiled.cost_analysis() or {})["flops"],
        temporaries=memory.temp_size_in_bytes if memory else 0,
        lines=len((compiled.as_text() or "").splitlines()),
    )


def interleaved(
    calls: Mapping[str, Callable[..., Any]],
    repeats: int,
    prepare: Callable[[str], Sequence[Any]] = lambda name: (),
    limit: float = math.inf,
) -> dict[str, np.ndarray]:
    """Times every call once per round, after a warm-up round; returns seconds by name.

    Every round has a new random order, because a call is slower after one that disturbs caches and
    threads. In a fixed order, the same call would be slower in every round.

    Args:
        calls: by name; each waits for its result.
        repeats: rounds.
        prepare: makes new arguments for a call; its own time is not measured.
        limit: seconds after which no round begins, except for the first two.
    """
    order = random.Random(0)
    rounds = []
    started = time.perf_counter()
    while len(rounds) <= repeats:
        if len(rounds) > 1 and time.perf_counter() - started > limit:
            break
        row = dict[str, float]()
        for name in order.sample(list(calls), len(calls)):
            arguments = prepare(name)
            began = time.perf_counter()
            calls[name](*arguments)
            row[name] = time.perf_counter() - began
        rounds.append([row[name] for name in calls])
    return dict(zip(calls, np.array(rounds[1:]).T, strict=True))


def median_ratio(times: np.ndarray, baseline: np.ndarray) -> float:
    """Returns the median over rounds of time / baseline, in which the machine's drift cancels."""
    return float(np.median(times / baseline))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Writes a Markdown table; numbers are right-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def conditions() -> str:
    """Returns the date, the versions, the device and the command that made a table."""
    names = ("muon_jax", "jax", "optax", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    device = jax.devices()[0]
    command = " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return (
        f"{datetime.date.today()}, Python {platform.python_version()}, {versions}, "
        f"{device.platform} with {jax.device_count()} device(s) and "
        f"{os.cpu_count()} cores ({platform.machine()}). Command: `{command}`"
    )
