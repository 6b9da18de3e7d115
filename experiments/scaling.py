"""Held-out loss against training FLOPs, for tuned Muon and tuned AdamW at several model sizes.

Every size is trained on tokens in proportion to its parameters, with a schedule of its own; a power
law L = a·C^-b is fitted to the losses of each optimizer (Liu et al. 2025, section 3.2).

python -m experiments.scaling run     # half an hour; skips saved trials
python -m experiments.scaling report  # the table, the laws and the figure
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import muon_jax
from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial, held_out_loss
from experiments.report import COLORS, LOSS, MORE_COLORS, mean_and_seeds, panels, table
from experiments.sweeps import ORTHOGONALIZER, best_on_seeds, final_loss, losses_by_rate
from experiments.trials import Measured, Trials
from trainer.data.tokens import BYTES
from trainer.language import TextConfig
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.optimizers import named_orthogonalizer

OPTIMIZERS = {"muon": "Muon", "adamw": "AdamW"}
CONTEXT = TextConfig().context


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """The best learning rate of each optimizer and size on the first seed runs on all seeds."""

    widths: tuple[int, ...] = (32, 48, 64)
    tokens_per_parameter: float = 20
    adamw_rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    muon_rates: tuple[float, ...] = (6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
    orthogonalizer: str = ORTHOGONALIZER
    results: Path = RESULTS / "scaling.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, held_out_loss, self.results, self.workers)

    def steps(self, width: int) -> int:
        tokens = (
            self.tokens_per_parameter * size_of(width, self.layers, self.orthogonalizer).parameters
        )
        return round(tokens / (self.batch_size * CONTEXT))

    def sweep(self, optimizer: str, width: int) -> list[LanguageTrial]:
        return [
            LanguageTrial(
                optimizer,
                rate,
                self.steps(width),
                self.seeds[0],
                orthogonalizer=self.orthogonalizer,
                evaluations=4,
                **(self.shared | {"width": width}),
            )
            for rate in (self.adamw_rates if optimizer == "adamw" else self.muon_rates)
        ]

    def flops(self, optimizer: str, width: int, *, with_optimizer: bool) -> float:
        """Returns the FLOPs of a run: 6·N per token, and Muon's products if `with_optimizer`."""
        size, steps = size_of(width, self.layers, self.orthogonalizer), self.steps(width)
        passes = 6 * size.parameters * self.batch_size * CONTEXT * steps
        orthogonalizing = optimizer == "muon" and with_optimizer
        return passes + orthogonalizing * size.orthogonalizing_flops * steps


class Size(NamedTuple):
    """What a model costs."""

    parameters: int
    """Parameters that multiply activations: the head counts, the embedding does not."""
    orthogonalizing_flops: int
    """FLOPs of the orthogonalizer in one step."""


@cache
def size_of(width: int, layers: int, orthogonalizer: str = ORTHOGONALIZER) -> Size:
    """Counts parameters and FLOPs without creating the model."""

    def parameters() -> nnx.State:
        config = DecoderConfig(width=width, layers=layers)
        return nnx.state(Decoder(config, BYTES, rngs=nnx.Rngs(0)), nnx.Param)

    tree = jax.eval_shape(parameters)
    muon = muon_jax.muon(
        1.0, scale="match_rms", orthogonalizer=named_orthogonalizer(orthogonalizer)
    )
    explained = muon_jax.explain(tree, muon)
    count = sum(leaf.size for leaf in explained.leaves if "embed" not in leaf.path)
    return Size(count, explained.flops or 0)


class Law(NamedTuple):
    """L = a·C^-b."""

    a: float
    b: float

    def loss(self, flops: np.ndarray) -> np.ndarray:
        return self.a * flops**-self.b

    def flops(self, loss: float) -> float:
        return (loss / self.a) ** (-1 / self.b)


def fit_law(flops: Sequence[float], losses: Sequence[float]) -> Law:
    """Fits a law by least squares on the logarithms."""
    slope, intercept = np.polyfit(np.log(flops), np.log(losses), 1)
    return Law(float(np.exp(intercept)), float(-slope))


class Ratio(NamedTuple):
    """FLOPs that Muon needs to reach AdamW's loss, divided by AdamW's FLOPs."""

    mean: float
    """Ratio for the laws that are fitted to the means over seeds."""
    low: float
    high: float
    """Largest ratio for laws that are fitted to one seed for each size; `low` is the smallest."""


def best_runs(plan: Plan, optimizer: str, width: int) -> dict[LanguageTrial, Measured]:
    return best_on_seeds(plan.trials, plan.sweep(optimizer, width), plan.seeds)


def losses(plan: Plan, optimizer: str) -> list[list[float]]:
    """Returns the final losses by size and seed."""
    return [
        [final_loss(measured) for measured in best_runs(plan, optimizer, width).values()]
        for width in plan.widths
    ]


def laws(plan: Plan, optimizer: str, *, with_optimizer: bool) -> tuple[Law, list[Law]]:
    """Returns the law fitted to means over seeds, and all laws fitted to one seed for each size."""
    flops = [plan.flops(optimizer, width, with_optimizer=with_optimizer) for width in plan.widths]
    by_size = losses(plan, optimizer)
    one_each = [fit_law(flops, chosen) for chosen in itertools.product(*by_size)]
    return fit_law(flops, [statistics.mean(each) for each in by_size]), one_each


def ratio(plan: Plan, width: int, *, with_optimizer: bool) -> Ratio:
    """Compares FLOPs at the loss that AdamW's law predicts for its FLOPs at this width."""
    muon, muon_each = laws(plan, "muon", with_optimizer=with_optimizer)
    adamw, adamw_each = laws(plan, "adamw", with_optimizer=with_optimizer)
    flops = plan.flops("adamw", width, with_optimizer=with_optimizer)

    def between(muon: Law, adamw: Law) -> float:
        return muon.flops(float(adamw.loss(np.asarray(flops)))) / flops

    spread = [between(*pair) for pair in itertools.product(muon_each, adamw_each)]
    return Ratio(between(muon, adamw), min(spread), max(spread))


def run(plan: Plan) -> None:
    for width in plan.widths:
        for optimizer in OPTIMIZERS:
            best_runs(plan, optimizer, width)


def report(plan: Plan) -> str:
    return "\n\n".join([_sweep_table(plan), _size_table(plan), _law_table(plan)])


def _sweep_table(plan: Plan) -> str:
    return table(
        ("width", "optimizer", "held-out loss by peak rate, first seed"),
        [
            (width, name, losses_by_rate(plan.trials.measure(plan.sweep(optimizer, width))))
            for width, (optimizer, name) in itertools.product(plan.widths, OPTIMIZERS.items())
        ],
    )


def _size_table(plan: Plan) -> str:
    rows = []
    for index, width in enumerate(plan.widths):
        passes, whole = (plan.flops("muon", width, with_optimizer=each) for each in (False, True))
        means = [mean_and_seeds(losses(plan, optimizer)[index]) for optimizer in OPTIMIZERS]
        rows.append(
            (
                width,
                f"{size_of(width, plan.layers).parameters:,}",
                plan.steps(width),
                f"{passes:.2e}",
                f"{whole / passes - 1:.1%}",
                *(f"{mean} ({by_seed})" for mean, by_seed in means),
                _shown(ratio(plan, width, with_optimizer=False)),
            )
        )
    head = ("width", "N", "steps", "FLOPs, 6·N·tokens", "Newton-Schulz adds", "Muon", "AdamW")
    return table((*head, "Muon's FLOPs for AdamW's loss"), rows)


def _law_table(plan: Plan) -> str:
    rows = []
    for with_optimizer, counted in ((False, "6·N·tokens"), (True, "and Newton-Schulz")):
        found = [laws(plan, each, with_optimizer=with_optimizer)[0] for each in OPTIMIZERS]
        share = _shown(ratio(plan, max(plan.widths), with_optimizer=with_optimizer))
        rows.append((counted, *(f"{law.a:.3g} · C^-{law.b:.4f}" for law in found), share))
    return table(("FLOPs counted", "Muon", "AdamW", "ratio at the largest size"), rows)


def _shown(ratio: Ratio) -> str:
    return f"{ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def draw(plan: Plan) -> Figure:
    figure, (against_flops, ratios) = panels(2)
    for optimizer, name in OPTIMIZERS.items():
        law, _ = laws(plan, optimizer, with_optimizer=False)
        flops = [plan.flops(optimizer, width, with_optimizer=False) for width in plan.widths]
        for at, found in zip(flops, losses(plan, optimizer), strict=True):
            against_flops.plot([at] * len(found), found, "o", color=COLORS[optimizer], alpha=0.6)
        line = np.geomspace(min(flops), max(flops))
        label = f"{name}: {law.a:.3g} · C^-{law.b:.3f}"
        against_flops.plot(line, law.loss(line), color=COLORS[optimizer], label=label)
    against_flops.set_xscale("log")
    against_flops.minorticks_off()
    flops = [plan.flops("muon", width, with_optimizer=False) for width in plan.widths]
    against_flops.set_xticks(flops, [f"{each:.1e}" for each in flops])
    against_flops.set(
        xlabel="FLOPs of a run, 6·N·tokens",
        ylabel=LOSS,
        title="a point a seed",
    )
    against_flops.legend(frameon=False)
    counts = ((False, "6·N·tokens"), (True, "and Newton-Schulz"))
    for (with_optimizer, label), color in zip(counts, MORE_COLORS, strict=False):
        found = [ratio(plan, width, with_optimizer=with_optimizer) for width in plan.widths]
        mean, low, high = np.array(found).T
        spread = (mean - low, high - mean)
        ratios.errorbar(plan.widths, mean, spread, fmt="o-", color=color, capsize=3, label=label)
    ratios.axhline(0.52, color="#888888", linestyle=":", label="Liu et al. 2025: 0.52")
    ratios.set_xticks(plan.widths)
    ratios.set(xlabel="width", ylabel="Muon's FLOPs for AdamW's loss", ylim=(0, None))
    ratios.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"scaling.png": draw})
