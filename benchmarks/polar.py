"""Polar error, FLOPs and time of this library's orthogonalizers and of its rivals'.

python -m benchmarks.polar                         # prints the tables
python -m benchmarks.polar --write                 # also docs/reference/polar.md and its figure
python -m benchmarks.polar --momenta momenta.npz   # also matrices saved from a training run

The inputs are one Gaussian matrix, two with singular values log-uniform over ranges of 1e2 and 1e4,
and one of rank 16. The error is the distance to the exact polar factor, divided by the norm of that
factor. It is restricted to the singular directions above 1e-3 of the largest, because rounding
decides the others. torch.optim.Muon's own iteration is included if torch is installed.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import muon_jax
from benchmarks.measuring import compile_for, conditions, interleaved, median_ratio, table
from benchmarks.rivals import KELLER, optax_map

ROOT = Path(__file__).resolve().parent.parent

BASELINE = "optax, default"
VISIBLE = 1e-3  # of the largest singular value
LOOPS = ("optax, dion", "inverse_sqrt", "polar_to(1e-3)")  # XLA counts their bodies once
DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
HEAD = (
    "# Orthogonalizers: error, FLOPs, time",
    "![Error on a Gaussian matrix against FLOPs, for three shapes; lower left is better.]"
    "(../images/polar.png)",
    "The error is the distance to the exact polar factor, divided by the norm of that factor, on "
    "the singular directions above 10⁻³ of the largest. The inputs are one Gaussian matrix, two "
    "with singular values log-uniform over ranges of 10² and 10⁴, and one of rank 16. Methods "
    "whose FLOPs XLA does not count, such as `dion`, are not in the figure.",
)


@dataclass(frozen=True)
class Options:
    """Which inputs, how often each call is timed, and where results go."""

    shapes: tuple[str, ...] = (
        "256x256",
        "512x512",
        "768x768",
        "1024x1024",
        "256x1024",
        "128x2048",
        "8x256x256",
    )
    repeats: int = 11
    momenta: Path | None = None
    """File that benchmarks/save_momenta.py wrote; errors are means over its matrices of a shape."""
    write: bool = False


def methods() -> dict[str, Callable[[Any], Any]]:
    """Returns every method by name, as a function of a (batch, rows, cols) array."""
    return {
        BASELINE: optax_map(KELLER, "frobenius"),
        "optax, dion": optax_map(DION, "frobenius"),
        "optax, schatten": optax_map(KELLER, "schatten"),
        "optax, spectral": optax_map(KELLER, "spectral"),
        "optax, aol": optax_map(KELLER, "aol"),
        "fast (default)": muon_jax.newton_schulz("fast"),
        "accurate": muon_jax.newton_schulz("accurate"),
        "minimax, 5 quintics": muon_jax.newton_schulz("minimax"),
        "fast, bfloat16": muon_jax.newton_schulz("fast", dtype="bfloat16"),
        "minimax, bfloat16": muon_jax.newton_schulz("minimax", dtype="bfloat16"),
        "keller": muon_jax.newton_schulz("keller"),
        "polar_express": muon_jax.newton_schulz("polar_express"),
        "cans": muon_jax.newton_schulz("cans"),
        "inverse_sqrt": muon_jax.inverse_sqrt(),
        "polar_to(1e-3)": muon_jax.polar_to(1e-3),
    }


def with_spectrum(values: np.ndarray, rows: int, cols: int, seed: int) -> np.ndarray:
    """Returns U diag(values) Vᵀ for random orthonormal U and V."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(rows, len(values))))
    right, _ = np.linalg.qr(rng.normal(size=(cols, len(values))))
    return (left * values) @ right.T


def inputs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns matrices of known spectrum; those of a batch differ in their seeds."""
    *batch, rows, cols = shape
    count, short = int(np.prod(batch, dtype=int)), min(rows, cols)
    low_rank = (np.arange(short) < 16).astype(float)

    def log_uniform(conditioning: float) -> np.ndarray:
        return np.geomspace(1, 1 / conditioning, short)

    def stacked(make: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.stack([make(seed) for seed in range(count)])

    return {
        "Gaussian": stacked(lambda seed: np.random.default_rng(seed).normal(size=(rows, cols))),
        "1e2": stacked(lambda seed: with_spectrum(log_uniform(1e2), rows, cols, seed)),
        "1e4": stacked(lambda seed: with_spectrum(log_uniform(1e4), rows, cols, seed)),
        "rank 16": stacked(lambda seed: with_spectrum(low_rank, rows, cols, seed)),
    }


def visible_error(result: np.ndarray, batch: np.ndarray) -> float:
    """Returns the mean relative error on singular directions above VISIBLE of the largest."""
    errors = []
    for output, matrix in zip(np.asarray(result, np.float64), batch, strict=True):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        seen = values > VISIBLE * values[0]
        middle = left[:, seen].T @ output @ right[seen].T
        errors.append(np.linalg.norm(middle - np.eye(seen.sum())) / np.sqrt(seen.sum()))
    return float(np.mean(errors))


def torch_methods(batch: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Returns torch.optim.Muon's iteration, which runs in bfloat16 for any input dtype."""
    if importlib.util.find_spec("torch") is None or len(batch) != 1:
        return {}
    torch = importlib.import_module("torch")
    iterate = importlib.import_module("torch.optim._muon")._zeropower_via_newtonschulz
    gradient = torch.tensor(batch[0], dtype=torch.float32)
    return {"torch.optim.Muon": lambda: iterate(gradient, KELLER, 5, 1e-7).float().numpy()[None]}


def measure(named: dict[str, np.ndarray], repeats: int) -> list[dict[str, Any]]:
    """Runs every method on inputs of one shape; FLOPs and times are ratios to optax's default."""
    arrays = {name: jnp.asarray(batch, jnp.float32) for name, batch in named.items()}
    first = next(iter(arrays.values()))
    compiled = {name: compile_for(method, first) for name, method in methods().items()}
    foreign = torch_methods(next(iter(named.values())))
    calls = {name: each.call for name, each in compiled.items()} | foreign
    times = interleaved(calls, repeats)
    runnable = {name: jax.jit(method) for name, method in methods().items()}
    base = compiled[BASELINE].flops
    rows = []
    for name in calls:
        if name in foreign:
            errors = [float("nan")] * len(named)
            errors[0] = visible_error(foreign[name](), next(iter(named.values())))
        else:
            results = [np.asarray(runnable[name](array)) for array in arrays.values()]
            errors = [visible_error(*pair) for pair in zip(results, named.values(), strict=True)]
        countable = name in compiled and name not in LOOPS
        rows.append(
            {
                "method": name,
                "flops": compiled[name].flops / base if countable else float("nan"),
                "time": median_ratio(times[name], times[BASELINE]),
                **dict(zip(named, errors, strict=True)),
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    def shown(value: Any, digits: int) -> str:
        return "–" if np.isnan(value) else f"{value:.{digits}f}"

    columns = [name for name in rows[0] if name not in ("method", "flops", "time")]
    return table(
        ("method", "FLOPs", "time", *(f"error, {name}" for name in columns)),
        [
            (
                row["method"],
                shown(row["flops"], 3),
                shown(row["time"], 2),
                *(shown(row[name], 3) for name in columns),
            )
            for row in rows
        ],
    )


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plots error on the Gaussian input against FLOPs: lower left is better."""
    shown = [shape for shape in ("512x512", "256x1024", "128x2048") if shape in results]
    figure = Figure(figsize=(4.2 * len(shown), 3.9), dpi=160, layout="constrained")
    for axes, shape in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        for row in results[shape]:
            if np.isnan(row["flops"]) or "bfloat16" in row["method"]:
                continue
            theirs = row["method"].startswith("optax")
            color = "#3b6fb6" if theirs else "#d1495b"
            axes.plot(row["flops"], row["Gaussian"], "s" if theirs else "o", color=color)
            if theirs and row["method"] != BASELINE:
                continue  # optax's presets nearly coincide, so one label is enough
            axes.annotate(
                "optax, all but dion" if theirs else row["method"],
                (row["flops"], row["Gaussian"]),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set(title=shape.replace("x", " × "), xlabel="FLOPs over optax's", yscale="log")
        axes.grid(alpha=0.25)
        axes.margins(x=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("error, Gaussian matrix")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _means(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Averages the rows of several inputs of one shape, method by method."""
    return [
        {
            key: rows[0][key] if key == "method" else float(np.mean([row[key] for row in rows]))
            for key in rows[0]
        }
        for rows in zip(*runs, strict=True)
    ]


def main(options: Options) -> None:
    results = {}
    for name in options.shapes:
        results[name] = measure(inputs(tuple(map(int, name.split("x")))), options.repeats)
    if options.momenta:
        saved = np.load(options.momenta)
        for shape in sorted({saved[name].shape for name in saved.files}):
            same = [saved[name] for name in saved.files if saved[name].shape == shape]
            size = "x".join(map(str, shape))
            results[f"{size}, momenta of a training run"] = _means(
                [measure({"momenta": matrix[None]}, 3) for matrix in same]
            )
    head = f"Ratios are to `{BASELINE}` on the same input in one run. {conditions()}"
    if options.momenta:
        head += "; `python -m benchmarks.save_momenta` makes that file"
    text = [head, *(f"## {name}\n\n{markdown(rows)}" for name, rows in results.items())]
    print("\n\n".join(text))
    if options.write:
        page = "\n\n".join([*HEAD, *text]) + "\n"
        (ROOT / "docs" / "reference" / "polar.md").write_text(page)
        draw(results, ROOT / "docs" / "images" / "polar.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
