"""The sweeps over optimizers, on text and on images, in tiny settings."""

import json
import math
from dataclasses import replace

import pytest

from experiments import compare_optimizers, images, optimizer_sweep
from experiments.curves import mean_curve, steps_to
from trainer.errors import DivergenceError, UsageError


def kept(module, monkeypatch, **lowest_rates):
    chosen = {
        name: replace(module.CONTENDERS[name], lowest_rate=rate)
        for name, rate in lowest_rates.items()
    }
    monkeypatch.setattr(module, "CONTENDERS", chosen)


@pytest.mark.parametrize(
    ("level", "step"), [(2.0, 10.0), (3.0, 10.0), (1.5, 15.0), (1.0, 20.0), (0.4, None)]
)
def test_a_curve_meets_a_level_between_two_measured_steps(level, step):
    assert steps_to(level, {"10": 2.0, "20": 1.0, "30": 3.0, "40": 0.5}) == step


def test_the_mean_curve_is_of_every_step():
    assert mean_curve([{"1": 2.0, "2": 1.0}, {"1": 4.0, "2": 2.0}]) == {"1": 3.0, "2": 1.5}


@pytest.mark.slow
def test_optimizers_are_measured_once_and_told_apart(texts, tmp_path, monkeypatch, capsys):
    kept(optimizer_sweep, monkeypatch, **{"adamw": 1e-3, "muon-clip": 2e-3})
    plan = optimizer_sweep.Plan(
        steps=4,
        rates=1,
        seeds=(0,),
        batch_size=4,
        context=16,
        width=16,
        layers=1,
        data=str(texts),
        results=tmp_path / "sweep.jsonl",
        workers=0,
    )
    figure = compare_optimizers.compare(plan)
    assert figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| AdamW | 0.001 |" in printed
    saved = plan.results.read_text()
    adamw, clipped = (json.loads(line)["measured"] for line in saved.splitlines())
    # For four matrices of attention and three of the MLP, Muon keeps one moment instead of two.
    assert adamw["state_bytes"] == pytest.approx(8 * adamw["parameters"], abs=16)
    hidden = 4 * 16 * 16 + 3 * 16 * 64
    assert adamw["state_bytes"] - clipped["state_bytes"] == pytest.approx(4 * hidden, abs=64)
    assert adamw["step_flops"] == 6 * (adamw["parameters"] - 256 * 16) * 4 * 16
    assert clipped["step_flops"] > adamw["step_flops"]
    compare_optimizers.compare(plan)
    assert plan.results.read_text() == saved


def known(trial):
    """Returns a loss that is best at the second rate, and lower by one for Muon."""
    names = list(optimizer_sweep.CONTENDERS)
    second = optimizer_sweep.CONTENDERS[trial.optimizer].rates(2)[1]
    loss = 3 + abs(math.log(trial.learning_rate / second)) + trial.seed / 10
    loss -= trial.optimizer == "muon"
    return {
        "held_out_loss": {"100": loss + 1, "200": loss + 0.5, "300": loss},
        "parameters": 10,
        "state_bytes": names.index(trial.optimizer) * 10,
        "step_flops": 2 if trial.optimizer == "muon" else 1,
        "step_seconds": 0.01 + trial.seed / 100,
    }


def test_the_table_of_optimizers_says_what_adamw_s_loss_costs(tmp_path, monkeypatch):
    kept(optimizer_sweep, monkeypatch, sgd=0.3, adamw=1e-3, muon=2e-3)
    monkeypatch.setattr(optimizer_sweep, "measure", known)
    plan = optimizer_sweep.Plan(rates=4, results=tmp_path / "known.jsonl", workers=0)
    best, swept = (each.splitlines()[2:] for each in optimizer_sweep.report(plan).split("\n\n"))
    assert best == [
        "| SGD | 0.9 | 3.1000 | 3.0000, 3.2000 | 300 | 1.00 | 0.0 | 20 |",
        "| AdamW | 0.003 | 3.1000 | 3.0000, 3.2000 | 300 | 1.00 | 1.0 | 20 |",
        "| Muon | 0.006 | 2.1000 | 2.0000, 2.2000 | 100 | 0.67 | 2.0 | 20 |",
    ]
    assert swept[1] == "| AdamW | 0.001 | 4.0986 | 3.0000 | 4.0986 | 5.1972 |"
    assert len(plan.trials.saved()) == 3 * (4 + 2)


def test_a_run_that_diverges_is_no_best(monkeypatch):
    def diverges(trial):
        raise DivergenceError

    monkeypatch.setattr(optimizer_sweep, "run_language", diverges)
    measured = optimizer_sweep.measure(optimizer_sweep.Plan().sweep("sgd")[0])
    assert json.loads(json.dumps(measured)) == measured
    assert optimizer_sweep.final_loss(measured) == math.inf


def test_an_empty_plan_is_refused():
    with pytest.raises(UsageError, match="give at least one step, rate and seed"):
        optimizer_sweep.Plan(rates=0)


def known_errors(folder, trial):
    del folder
    error = 0.02 if trial.optimizer == "muon" else 0.04
    return {
        "error": {"10": error + 0.04, "20": error + trial.seed / 100},
        "loss": {"10": 1.0, "20": 1 / trial.learning_rate},
        "step_seconds": 0.5,
    }


def test_the_table_of_images_says_when_few_errors_are_left(tmp_path, monkeypatch):
    kept(images, monkeypatch, muon=2e-3, adamw=1e-3)
    monkeypatch.setattr(images, "measure", known_errors)
    monkeypatch.setitem(images.DATA, "digits", replace(images.DATA["digits"], error=0.04))
    plan = images.Plan(data=("digits",), rates=4, results=tmp_path / "known.jsonl", workers=0)
    best, swept = (each.splitlines()[2:] for each in images.report(plan).split("\n\n"))
    assert best == [
        "| Muon | 0.054 | 3.00% | 2.00%, 3.00%, 4.00% | 17 | 15, 17, 20 | 0.77 | 8.6 |",
        "| AdamW | 0.027 | 5.00% | 4.00%, 5.00%, 6.00% "
        "| never | 20, never, never | never | never |",
    ]
    assert swept[0] == "| Muon | 0.002 | 2.00% | 2.00% | 2.00% | 2.00% |"


@pytest.mark.slow
def test_images_are_measured_once_by_every_optimizer(tmp_path, monkeypatch):
    kept(images, monkeypatch, muon=2e-3, adamw=1e-3)
    short = replace(images.DATA["digits"], epoch=64, epochs=4, evaluations=2, error=0.999)
    monkeypatch.setitem(images.DATA, "digits", short)
    plan = images.Plan(
        data=("digits",),
        rates=1,
        seeds=(0,),
        width=2,
        stages=1,
        results=tmp_path / "images.jsonl",
        workers=0,
    )
    images.run(plan)
    saved = plan.results.read_text()
    for row in map(json.loads, saved.splitlines()):
        assert list(row["measured"]["error"]) == ["2", "4"]
    best, swept = images.report(plan).split("\n\n")
    assert best.count("\n") == swept.count("\n") == 3
    assert len(images.draw(plan).axes) == 1
    assert plan.results.read_text() == saved
