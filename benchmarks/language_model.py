"""Compares optimizers, and ways to orthogonalise, by the held-out loss of examples/train_lm.py.

python benchmarks/language_model.py optimizers       # Muon and AdamW, each over learning rates
python benchmarks/language_model.py orthogonalizers  # Muon's polar maps, over rates and seeds
python benchmarks/language_model.py report           # tables and figure from the saved results

Runs that `benchmarks/results/language_model.jsonl` already holds are not repeated.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

import tyro
from common.language import SampleConfig, TextConfig
from common.optimizers import OptimizerConfig
from common.training import RunConfig
from matplotlib.figure import Figure
from train_lm import Config, train

RESULTS = HERE / "results" / "language_model.jsonl"
FIGURE = HERE.parent / "docs" / "images" / "muon_and_adamw.png"

STEPS, BATCH_SIZE, EVAL_EVERY = 400, 8, 50
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (0, 1, 2)
ORTHOGONALIZERS = ("fast", "accurate", "bfloat16", "keller", "jordan", "svd")
CENTRAL_RATE = 8e-3
NEIGHBOURS = (5.6e-3, 1.13e-2)
MORE_SEEDS = tuple(range(6))


@dataclass(frozen=True)
class Trial:
    """One training run, by what sets it apart from the others."""

    optimizer: str
    learning_rate: float
    orthogonalizer: str
    seed: int


def adamw(rate: float, seed: int) -> Trial:
    return Trial("adamw", rate, "-", seed)


def muon(rate: float, seed: int, orthogonalizer: str = "fast") -> Trial:
    return Trial("muon", rate, orthogonalizer, seed)


def run(trial: Trial) -> dict[str, float]:
    """Trains once and returns the held-out loss by step, in nats per byte."""
    name = {} if trial.orthogonalizer == "-" else {"orthogonalizer": trial.orthogonalizer}
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            Config(
                text=TextConfig(batch_size=BATCH_SIZE),
                optimizer=OptimizerConfig(
                    optimizer=trial.optimizer, learning_rate=trial.learning_rate, **name
                ),
                run=RunConfig(
                    steps=STEPS,
                    seed=trial.seed,
                    eval_every=EVAL_EVERY,
                    checkpoint_every=STEPS,
                    out=Path(folder) / "run",
                    quiet=True,
                ),
                sample=SampleConfig(sample_tokens=1),
            )
        )
    return {str(step): round(loss, 5) for step, loss in result.run.held_out_loss.items()}


def saved() -> dict[Trial, dict[str, float]]:
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text().splitlines())
    return {Trial(**row["trial"]): row["held_out_loss"] for row in rows}


def final(trial: Trial) -> float:
    """Returns the last held-out loss of a trial, from the saved results or by running it."""
    curve = saved().get(trial)
    if curve is None:
        began = time.monotonic()
        curve = run(trial)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps({"trial": asdict(trial), "held_out_loss": curve}) + "\n")
        print(f"{trial}  {curve[str(STEPS)]:.4f}  {time.monotonic() - began:.0f} s", flush=True)
    return curve[str(STEPS)]


def optimizers() -> None:
    """Sweeps the learning rate of both on seed 0, then runs the best of each on all seeds."""
    for make in (muon, adamw):
        best = min(LEARNING_RATES, key=lambda rate, make=make: final(make(rate, 0)))
        for seed in SEEDS:
            final(make(best, seed))


def orthogonalizers() -> None:
    """Runs each on six seeds at the default one's best rate, and on three at its neighbours."""
    for name in ORTHOGONALIZERS:
        for seed in MORE_SEEDS:
            final(muon(CENTRAL_RATE, seed, name))
    for name in ORTHOGONALIZERS:
        for rate in NEIGHBOURS:
            for seed in SEEDS:
                final(muon(rate, seed, name))


def report() -> None:
    """Prints the tables and draws the figure from the saved results."""
    print(_sweep_table(), _orthogonalizer_table(), sep="\n\n")
    _draw(FIGURE)


def _best_rate(make) -> float:
    known = saved()
    swept = [rate for rate in LEARNING_RATES if make(rate, 0) in known]
    return min(swept, key=lambda rate: known[make(rate, 0)][str(STEPS)])


def _sweep_table() -> str:
    known = {trial: curve[str(STEPS)] for trial, curve in saved().items()}
    rows = ["| peak learning rate | Muon | AdamW |", "|---|---|---|"]
    for rate in LEARNING_RATES:
        rows.append(f"| {rate:g} | {known[muon(rate, 0)]:.4f} | {known[adamw(rate, 0)]:.4f} |")
    for label, pick in (("best, mean of 3 seeds", statistics.mean), ("best, spread", _spread)):
        cells = [pick([known[m(_best_rate(m), seed)] for seed in SEEDS]) for m in (muon, adamw)]
        rows.append(f"| {label} | {cells[0]:.4f} | {cells[1]:.4f} |")
    return "\n".join(rows)


def _orthogonalizer_table() -> str:
    known = {trial: curve[str(STEPS)] for trial, curve in saved().items()}
    low, high = NEIGHBOURS
    rows = [
        f"| orthogonalizer | {low:g} | {CENTRAL_RATE:g} | {high:g} | {CENTRAL_RATE:g}, six seeds "
        "| above `jordan`, same seeds |",
        "|---|---|---|---|---|---|",
    ]

    def losses(name: str, rate: float, seeds: Iterable[int]) -> list[float]:
        return [known[trial] for seed in seeds if (trial := muon(rate, seed, name)) in known]

    reference = losses("jordan", CENTRAL_RATE, MORE_SEEDS)
    for name in ORTHOGONALIZERS:
        swept = [losses(name, rate, SEEDS) for rate in (low, CENTRAL_RATE, high)]
        cells = [f"{statistics.mean(each):.4f}" if each else "–" for each in swept]
        six = losses(name, CENTRAL_RATE, MORE_SEEDS)
        above = [ours - theirs for ours, theirs in zip(six, reference, strict=False)]
        error = statistics.stdev(above) / len(above) ** 0.5
        cells += [
            f"{statistics.mean(six):.4f} ({len(six)})",
            f"{statistics.mean(above):+.4f} ± {error:.4f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _spread(values: list[float]) -> float:
    return max(values) - min(values)


def _draw(path: Path) -> None:
    curves = saved()
    figure = Figure(figsize=(9.5, 3.8), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, make, color in (("Muon", muon, "#d1495b"), ("AdamW", adamw, "#3b6fb6")):
        best = _best_rate(make)
        runs = [curves[make(best, seed)] for seed in SEEDS]
        steps = list(runs[0])
        values = [[curve[step] for curve in runs] for step in steps]
        at = [int(step) for step in steps]
        low, high = [min(v) for v in values], [max(v) for v in values]
        left.fill_between(at, low, high, color=color, alpha=0.25, linewidth=0)
        means = [statistics.mean(v) for v in values]
        left.plot(at, means, color=color, label=f"{name}, peak learning rate {best:g}")
        sweep = [curves[make(rate, 0)][str(STEPS)] for rate in LEARNING_RATES]
        right.plot(LEARNING_RATES, sweep, "o-", color=color, label=name)
    left.set(xlabel="step", ylabel="held-out loss (nats per byte)", title="best rate, 3 seeds")
    right.set(xlabel="peak learning rate", xscale="log", title=f"after {STEPS} steps, seed 0")
    right.set_xticks(LEARNING_RATES, [f"{rate:g}" for rate in LEARNING_RATES], minor=False)
    right.minorticks_off()
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"optimizers": optimizers, "orthogonalizers": orthogonalizers, "report": report}
    )
