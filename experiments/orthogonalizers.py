"""Does a better polar factor train better? Muon's orthogonalizers on the same seeds.

python experiments/orthogonalizers.py run     # hours; what is saved is not run again
python experiments/orthogonalizers.py report  # the table
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from command_line import RESULTS, main
from language import LanguageTrial, held_out_loss
from sweeps import final_loss
from trials import Trials


@dataclass(frozen=True)
class Plan:
    """Every orthogonalizer at every rate and on every seed."""

    orthogonalizers: tuple[str, ...] = ("keller", "fast", "svd", "accurate", "jordan", "bfloat16")
    reference: str = "keller"
    rates: tuple[float, ...] = (1e-2,)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 500
    batch_size: int = 32
    width: int = 128
    layers: int = 4
    data: str | None = None
    results: Path = RESULTS / "orthogonalizers.jsonl"
    workers: int = 1

    @property
    def trials(self) -> Trials[LanguageTrial]:
        return Trials(LanguageTrial, held_out_loss, self.results, self.workers)

    def at(self, orthogonalizer: str, rate: float) -> list[LanguageTrial]:
        return [
            LanguageTrial(
                "muon",
                rate,
                self.steps,
                seed,
                orthogonalizer,
                batch_size=self.batch_size,
                width=self.width,
                layers=self.layers,
                data=self.data,
            )
            for seed in self.seeds
        ]


def run(plan: Plan) -> None:
    for name in plan.orthogonalizers:
        for rate in plan.rates:
            plan.trials.measure(plan.at(name, rate))


def report(plan: Plan) -> str:
    """Tabulates the mean loss by rate, and how far it lies above the reference at the best one."""
    rates = [f"{rate:g}" for rate in plan.rates]
    rows = [
        f"| orthogonalizer | {' | '.join(rates)} | above `{plan.reference}`, same seeds |",
        "|---" * (len(rates) + 2) + "|",
    ]
    known = {
        name: {rate: _losses(plan, name, rate) for rate in plan.rates}
        for name in plan.orthogonalizers
    }
    reference = min(known[plan.reference].values(), key=statistics.mean)
    for name, losses in known.items():
        best = min(losses.values(), key=statistics.mean)
        above = [ours - theirs for ours, theirs in zip(best, reference, strict=True)]
        cells = [f"{statistics.mean(each):.4f}" for each in losses.values()]
        rows.append(f"| `{name}` | {' | '.join(cells)} | {mean_and_error(above)} |")
    return "\n".join(rows)


def mean_and_error(values: list[float]) -> str:
    """Writes a mean and its standard error."""
    if len(values) < 2:
        return f"{values[0]:+.4f}"
    return f"{statistics.mean(values):+.4f} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


def _losses(plan: Plan, orthogonalizer: str, rate: float) -> list[float]:
    measured = plan.trials.measure(plan.at(orthogonalizer, rate))
    return list(map(final_loss, measured.values()))


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report)
