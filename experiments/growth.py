"""Do weights and activations grow without weight decay, and how even are the weights' spectra?

Compares Muon with weight decay, Muon without it, and AdamW, each at one learning rate (Liu et al.
2025, sections 2.2 and 3.4).

python -m experiments.growth run     # five minutes; skips saved trials
python -m experiments.growth report  # the tables and the figure
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array, Int
from matplotlib.figure import Figure

from experiments.command_line import RESULTS, main
from experiments.language import LanguagePlan, LanguageTrial
from experiments.observed import KINDS, by_kind, observe, root_mean_square
from experiments.report import COLORS, draw_curves, mean_and_range, mean_and_seeds, panels, table
from experiments.sweeps import ORTHOGONALIZER, final_loss
from experiments.trials import Measured, Trials
from muon_jax.diagnostics import by_matrix, singular_value_entropy
from trainer.data.text import read_text
from trainer.data.tokens import tokenize
from trainer.data.windows import held_out_batches
from trainer.models.decoder import Decoder

MUON, ADAMW = "Muon", "AdamW"
ARMS = {
    MUON: ("muon", True, COLORS["muon"]),
    "Muon, no decay": ("muon", False, COLORS["optax-muon"]),
    ADAMW: ("adamw", True, COLORS["adamw"]),
}
"""Optimizer, whether weights decay, and color of each arm."""
GROUPS = {"query, out": ("query", "out"), "key, value": ("key", "value"), "MLP": KINDS[4:]}
"""Kinds of matrices that figure 4 of the paper groups together."""


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Settings of the runs; none of them is swept."""

    steps: int = 800
    adamw_rate: float = 6e-3
    muon_rate: float = 1.2e-2
    weight_decay: float = 0.1
    orthogonalizer: str = ORTHOGONALIZER
    width: int = 48
    results: Path = RESULTS / "growth.jsonl"

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, measure, self.results, self.workers)

    def trials_of(self, arm: str) -> list[LanguageTrial]:
        optimizer, decays, _ = ARMS[arm]
        return [
            LanguageTrial(
                optimizer,
                self.muon_rate if optimizer == "muon" else self.adamw_rate,
                self.steps,
                seed,
                weight_decay=self.weight_decay * decays,
                orthogonalizer=self.orthogonalizer,
                evaluations=8,
                **self.shared,
            )
            for seed in self.seeds
        ]


def measure(trial: LanguageTrial) -> Measured:
    """Returns losses, RMS values and entropies by step, and the final entropy of every matrix."""
    text = trial.text_config
    tokens = tokenize(read_text(text.data, text.pattern), text.tokenizer)
    windows = held_out_batches(tokens, context=text.context, batch_size=text.batch_size)[0]
    measured: Measured = {
        name: {} for name in ("held_out_loss", "weight_rms", "entropy", "block_rms")
    }
    for seen in observe(trial):
        at = str(seen.step)
        measured["held_out_loss"][at] = round(seen.held_out_loss, 5)
        measured["weight_rms"][at] = _rounded(by_kind(root_mean_square, seen.params))
        measured["entropy"][at] = _rounded(by_kind(singular_value_entropy, seen.params))
        measured["block_rms"][at] = block_rms(seen.model, jnp.asarray(windows[:, :-1]))
        if seen.step == trial.steps:
            entropies = by_matrix(singular_value_entropy, seen.params)
            measured["entropies"] = _rounded({path: of[0] for path, of in entropies.items()})
    return measured


def block_rms(model: Decoder, tokens: Int[Array, "batch length"]) -> list[float]:
    """Returns the RMS of the residual stream after each block."""
    x, found = model.embed(tokens), []
    for block in model.blocks:
        x = block(x, mlp_options={})
        found.append(round(float(jnp.sqrt(jnp.mean(jnp.square(x)))), 4))
    return found


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}


def runs(plan: Plan, arm: str) -> list[Measured]:
    return list(plan.trials.measure(plan.trials_of(arm)).values())


def run(plan: Plan) -> None:
    by_arm = [plan.trials_of(arm) for arm in ARMS]
    plan.trials.measure(trial for of_seed in zip(*by_arm, strict=True) for trial in of_seed)


def curve(measured: Measured, what: str, kinds: Sequence[str] = KINDS) -> dict[str, float]:
    """Returns the mean over kinds of matrices by step; for `block_rms`, that of the last block."""
    if what == "block_rms":
        return {step: blocks[-1] for step, blocks in measured[what].items()}
    return {step: statistics.mean(of[k] for k in kinds) for step, of in measured[what].items()}


def report(plan: Plan) -> str:
    return "\n\n".join([_growth_table(plan), _entropy_table(plan)])


def _growth_table(plan: Plan) -> str:
    rows = []
    for arm in ARMS:
        found = runs(plan, arm)
        cells = list(mean_and_seeds([final_loss(measured) for measured in found]))
        for what in ("weight_rms", "block_rms"):
            curves = [list(curve(measured, what).values()) for measured in found]
            first, last = ([each[at] for each in curves] for at in (0, -1))
            cells.append(f"{statistics.mean(first):.3g} → {mean_and_range(last)}")
        rows.append((arm, *cells))
    head = ("", "held-out loss, mean", "by seed", "RMS of weights, start → end")
    return table((*head, "after the last block"), rows)


def _entropy_table(plan: Plan) -> str:
    def cell(arm: str, kinds: Sequence[str]) -> str:
        return mean_and_range(
            [list(curve(each, "entropy", kinds).values())[-1] for each in runs(plan, arm)]
        )

    tabulated = table(
        ("SVD entropy at the end", *GROUPS),
        [(arm, *(cell(arm, kinds) for kinds in GROUPS.values())) for arm in ARMS],
    )
    higher, count = compare_entropies(plan)
    return (
        f"{tabulated}\n\n"
        f"Higher in Muon's than in AdamW's on the same seed: {higher} of {count} matrices."
    )


def compare_entropies(plan: Plan) -> tuple[int, int]:
    """Counts the matrices with a higher entropy for Muon than for AdamW, and counts all matrices.

    Both optimizers use weight decay.
    """
    pairs = [
        (muon["entropies"][path], adamw["entropies"][path])
        for muon, adamw in zip(runs(plan, MUON), runs(plan, ADAMW), strict=True)
        for path in muon["entropies"]
    ]
    return sum(muon > adamw for muon, adamw in pairs), len(pairs)


def draw(plan: Plan) -> Figure:
    figure, axes = panels(3, width=4.2)
    wanted = {
        "weight_rms": "RMS of weights, mean of all matrices",
        "block_rms": "RMS of the residual stream after the last block",
        "entropy": "SVD entropy, mean of all matrices",
    }
    for panel, (what, title) in zip(axes, wanted.items(), strict=True):
        curves = {
            arm: (color, [curve(measured, what) for measured in runs(plan, arm)])
            for arm, (_, _, color) in ARMS.items()
        }
        draw_curves(panel, curves, legend=panel is axes[0], title=title)
        panel.title.set_fontsize(9)
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"growth.png": draw})
