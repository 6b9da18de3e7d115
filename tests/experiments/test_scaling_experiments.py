"""The experiments on scaling Muon: laws of the measurements, and tables of known results."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import exactness, growth, scaling, update_rms
from experiments.language import LanguageTrial, held_out_loss
from experiments.observed import KINDS, by_kind, observe, root_mean_square
from experiments.sweeps import best_on_seeds, final_loss
from experiments.trials import Trials

RATE = 1e-2
WIDTH, HIDDEN = 16, 64


@pytest.fixture(scope="module")
def trial(texts):
    return LanguageTrial(
        "muon",
        RATE,
        steps=4,
        seed=0,
        scale=f"hidden_size:{WIDTH}",
        orthogonalizer="svd",
        batch_size=2,
        width=WIDTH,
        layers=1,
        evaluations=2,
        data=str(texts),
    )


@pytest.fixture(scope="module")
def seen(trial):
    return list(observe(trial))


# Measurements


@pytest.mark.slow
def test_observed_training_is_that_of_the_trainer(trial, seen):
    expected = held_out_loss(trial)["held_out_loss"]
    found = {str(each.step): each.held_out_loss for each in seen if each.step > 1}
    assert found == pytest.approx(expected, abs=2e-5)
    assert [each.step for each in seen] == [1, 2, 4]


@pytest.mark.slow
def test_directions_are_updates_without_rate_and_decay(seen):
    by_size = {"query": WIDTH, "out": WIDTH, "gate": HIDDEN, "down": HIDDEN}
    for kind, rms in by_kind(root_mean_square, seen[-1].direction).items():
        if kind in by_size:  # orthogonal, times 0.2·√H
            assert rms == pytest.approx(0.2 * np.sqrt(WIDTH / by_size[kind]), rel=1e-3), kind


@pytest.mark.slow
@pytest.mark.parametrize("module", [update_rms, growth, exactness])
def test_measures_are_of_every_kind_and_look(module, trial, seen, monkeypatch):
    monkeypatch.setattr(module, "observe", lambda trial: iter(seen))
    measured = module.measure(trial)
    assert final_loss(measured) == pytest.approx(seen[-1].held_out_loss, abs=1e-5)
    if module is exactness:
        assert max(measured["residual"].values()) < 1e-3  # the factor is exact
        return
    assert all(set(look) == set(KINDS) for look in measured["weight_rms"].values())
    if module is update_rms:
        assert list(measured["update_rms"]) == ["2", "4"]
    else:
        assert list(measured["entropy"]) == ["1", "2", "4"]
        assert len(measured["entropies"]) == len(KINDS)
        assert [len(blocks) for blocks in measured["block_rms"].values()] == [1, 1, 1]


# Tables and fits


def test_the_best_of_the_sweep_runs_on_all_seeds_and_nothing_twice(tmp_path, trial):
    ran = []

    def run(trial):
        ran.append(trial)
        return {"held_out_loss": {"2": 9.0, "4": abs(trial.learning_rate - RATE) + trial.seed}}

    trials = Trials(LanguageTrial, run, tmp_path / "results.jsonl", workers=0)
    swept = [replace(trial, learning_rate=rate) for rate in (RATE / 2, RATE, RATE * 2)]
    best = best_on_seeds(trials, swept, (0, 1, 2))
    assert [(each.learning_rate, each.seed) for each in best] == [(RATE, 0), (RATE, 1), (RATE, 2)]
    assert [final_loss(measured) for measured in best.values()] == [0, 1, 2]
    assert len(ran) == 5
    assert best_on_seeds(trials, swept, (0, 1, 2)) == best
    assert len(ran) == 5


def test_size_counts_what_multiplies_activations():
    parameters, flops = scaling.size_of(16, 1)
    assert parameters == 4 * 16 * 16 + 3 * 16 * HIDDEN + 256 * 16 + 3 * 16
    assert flops > 0


def test_scaling_finds_the_laws_that_losses_follow(tmp_path, monkeypatch):
    """Muon's losses here equal AdamW's with twice the FLOPs."""

    def known(trial):
        tokens = trial.steps * trial.batch_size * scaling.CONTEXT
        flops = 6 * scaling.size_of(trial.width, trial.layers).parameters * tokens
        worse = 1 + abs(trial.learning_rate - RATE)
        loss = 30 * (flops * (1 + (trial.optimizer == "muon"))) ** -0.1
        return {"held_out_loss": {str(trial.steps): loss * worse}}

    monkeypatch.setattr(scaling, "held_out_loss", known)
    rates = (RATE / 2, RATE)
    plan = scaling.Plan(
        widths=(16, 32, 48),
        muon_rates=rates,
        adamw_rates=rates,
        results=tmp_path / "results.jsonl",
        workers=0,
    )
    law, _ = scaling.laws(plan, "adamw", with_optimizer=False)
    assert law == pytest.approx((30, 0.1), rel=1e-6)
    for width in plan.widths:
        found = scaling.ratio(plan, width, with_optimizer=False)
        assert found == pytest.approx((0.5, 0.5, 0.5), rel=1e-6)
        assert scaling.ratio(plan, width, with_optimizer=True).mean > 0.5
    assert scaling.report(plan).count("0.50 (0.50 to 0.50)") == 4
    assert len(scaling.draw(plan).axes) == 2
    assert len(plan.trials.saved()) == 3 * 2 * (2 + 2)


def by_step(values):
    return dict.fromkeys(("2", "4"), values)


def known(trial):
    """Returns invented results: Muon's updates grow with √width, AdamW's do not."""
    muon = trial.optimizer == "muon"
    loss = 2.0 + abs(trial.learning_rate - RATE) + trial.seed / 10 + (trial.weight_decay == 0)
    kinds = dict.fromkeys(KINDS, 0.9 if muon else 0.8)
    return {
        "held_out_loss": by_step(loss + trial.orthogonalizer.endswith(":10")),
        "update_rms": by_step(dict.fromkeys(KINDS, 0.2 if muon else 0.3)),
        "weight_rms": by_step(kinds),
        "entropy": by_step(kinds),
        "block_rms": by_step([1.0, 2.0]),
        "entropies": {"a": 0.9, "b": 0.95 if muon else 0.9},
        "residual": by_step(0.1),
    }


def test_update_rms_reports_each_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(update_rms, "measure", known)
    rates = (RATE, 2 * RATE)
    plan = update_rms.Plan(
        steps=4, muon_rates=rates, adamw_rates=rates, results=tmp_path / "results.jsonl", workers=0
    )
    sizes, losses = update_rms.report(plan).split("\n\n")
    assert sizes.count("0.200 (0.200 to 0.200)") == 3 * len(KINDS)
    assert sizes.count("0.300 (0.300 to 0.300)") == len(KINDS)
    assert losses.count("| 2.1000 | 2.0000, 2.1000, 2.2000 |") == 4
    assert len(update_rms.draw(plan).axes) == 2
    assert {trial.scale for trial in plan.trials.saved()} == {
        "match_rms",
        "update_norm",
        "hidden_size:48",
    }


def test_growth_reports_each_arm_and_compares_entropies(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "measure", known)
    plan = growth.Plan(
        steps=4, muon_rate=RATE, adamw_rate=RATE, results=tmp_path / "results.jsonl", workers=0
    )
    grown, entropies = growth.report(plan).split("\n\n", 1)
    assert (grown.count("| 2.1000 | "), grown.count("| 3.1000 | ")) == (2, 1)  # one has no decay
    assert growth.compare_entropies(plan) == (3, 6)
    assert entropies.endswith("3 of 6 matrices.")
    assert len(growth.draw(plan).axes) == 3
    arms = {(trial.optimizer, trial.weight_decay) for trial in plan.trials.saved()}
    assert arms == {("muon", 0.1), ("muon", 0.0), ("adamw", 0.1)}


def test_exactness_compares_on_the_same_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(exactness, "measure", known)
    plan = exactness.Plan(
        steps=4, rates=(RATE, 2 * RATE), results=tmp_path / "results.jsonl", workers=0
    )
    found = exactness.rows(plan)
    assert found["keller:10"].above == pytest.approx([1.0] * 3)
    assert found["svd"].above == [0.0] * 3
    assert exactness.report(plan).count("| +0.0000 |") == len(plan.maps) - 2
    assert len(exactness.draw(plan).axes) == 1
