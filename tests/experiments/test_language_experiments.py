"""Experiments in tiny settings: each trial runs once, the best learning rate gets more seeds."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from experiments import ablation, steps_to_adamw
from experiments.language import LanguageTrial, held_out_loss
from experiments.trials import Trials


@dataclass(frozen=True)
class Sum:
    left: int
    right: int = 0


def added(trial: Sum) -> dict[str, int]:
    return {"sum": trial.left + trial.right}


def refused(trial: Sum) -> dict[str, int]:
    raise AssertionError(f"{trial} ran again")


@pytest.mark.slow
def test_a_trial_is_measured_once(tmp_path):
    file = tmp_path / "results" / "sums.jsonl"
    wanted = [Sum(1, 2), Sum(3), Sum(1, 2)]
    measured = Trials(Sum, added, file, workers=64).measure(wanted)
    assert measured == {Sum(1, 2): {"sum": 3}, Sum(3): {"sum": 3}}
    assert Trials(Sum, refused, file, workers=0).measure(wanted) == measured
    assert len(file.read_text().splitlines()) == 2


def test_a_trial_that_fails_is_not_saved_and_spares_the_others(tmp_path):
    file = tmp_path / "sums.jsonl"
    Trials(Sum, added, file, workers=0).measure([Sum(1)])
    with pytest.raises(AssertionError, match="ran again"):
        Trials(Sum, refused, file, workers=0).measure([Sum(1), Sum(2)])
    assert list(Trials(Sum, added, file).saved()) == [Sum(1)]


def known_loss(trial: LanguageTrial) -> dict[str, dict[str, float]]:
    """Returns a loss with its minimum at 0.01; it depends on optimizer, `svd` and seed too."""
    loss = 1 + abs(math.log10(trial.learning_rate) + 2) + trial.seed / 10
    loss += (trial.optimizer == "adamw") + (trial.orthogonalizer == "svd") / 4
    return {"held_out_loss": {"1": 5.0, str(trial.steps): loss}}


@pytest.fixture
def known(monkeypatch, tmp_path) -> dict[str, Any]:
    """Replaces training by `known_loss`, in a temporary folder."""
    for experiment in (ablation, steps_to_adamw):
        monkeypatch.setattr(experiment, "held_out_loss", known_loss)
    return {"results": tmp_path / "results.jsonl", "workers": 0}


def test_the_best_rate_of_each_optimizer_runs_on_every_seed(known):
    rates = (8e-3, 1.6e-2, 4e-3)
    of = ("adamw_rates", "muon_rates", "large_adamw_rates", "large_muon_rates")
    plan = steps_to_adamw.Plan(**dict.fromkeys(of, rates), **known)
    steps_to_adamw.run(plan)
    trials = plan.trials.saved()
    longer = {trial for trial in trials if trial.steps == plan.longer_steps}
    two_rates = {trial for trial in trials if trial.fallback_learning_rate}
    defaults = {trial for trial in trials if trial.optimizer == "muon-default"}
    large = {trial for trial in trials if trial.batch_size == plan.large_batch_size} - defaults
    one_rate = set(trials) - longer - two_rates - large - defaults
    assert len(one_rate) == 3 * (3 + 2)  # three rates on the first seed, and the best on two more
    assert len(two_rates) == 3 * (2 + 2)  # two factors on the first seed, and the best on two more
    assert len(large) == len(one_rate)
    assert {(each.batch_size, each.learning_rate) for each in defaults} == {(32, 8e-3)}
    assert {each.seed for each in defaults} == set(plan.seeds)
    assert {trial.orthogonalizer for trial in large} == {"fast"}
    assert {trial.fallback_learning_rate for trial in two_rates} == {2.4e-2, 8e-2}
    assert {(each.optimizer, each.seed) for each in longer} == {("muon", s) for s in plan.seeds}
    assert {trial.learning_rate for trial in trials if trial.seed} == {8e-3}
    table, second, third = (t.splitlines()[2:] for t in steps_to_adamw.report(plan).split("\n\n"))
    muon, muon_longer, optax_muon, adamw = table
    swept = "0.008: 1.0969, 0.016: 1.2041, 0.004: 1.3979"
    assert muon == f"| Muon | 720 | {swept} | 1.1969 | 1.0969, 1.1969, 1.2969 |"
    assert muon_longer == "| Muon | 900 | as above | 1.1969 | 1.0969, 1.1969, 1.2969 |"
    assert optax_muon == muon.replace("Muon", "optax.contrib.muon")
    assert adamw.endswith("| 2.1969 | 2.0969, 2.1969, 2.2969 |")
    assert second[0] == (
        "| Muon | 720 | 0.024: 1.0969, 0.08: 1.0969 | 1.1969 | 1.0969, 1.1969, 1.2969 |"
    )
    assert third == [muon, optax_muon, adamw]
    assert plan.trials.saved() == trials
    assert [len(axes.lines) for axes in steps_to_adamw.draw(plan).axes] == [4, 3, 3]


def test_one_choice_is_changed_at_a_time_on_the_same_seeds(known):
    arms = (ablation.ACCURATE, ablation.SVD, "`bfloat16`")
    plan = ablation.Plan(arms=arms, seeds=(0,), more_seeds=(1,), large_more_seeds=(1,), **known)
    table, large = (each.splitlines()[2:] for each in ablation.report(plan).split("\n\n"))
    reference, svd, one_seed = table
    assert reference == "| `accurate` | 1.1469 |  |  |"
    assert svd == "| exact, by SVD | 1.3969 | +0.2500 ± 0.0000 | +0.2500, +0.2500 |"
    assert one_seed == "| `bfloat16` | 1.0969 | +0.0000 | +0.0000 |"
    assert large == [
        "| `fast`, the default | 1.1469 |  |  |",
        "| exact, by SVD | 1.3469 | +0.2500 | +0.2500 |",
        "| `jordan` | 1.1469 | +0.0000 ± 0.0000 | +0.0000, +0.0000 |",
    ]
    trials = set(plan.trials.saved())
    assert {trial.batch_size for trial in trials if trial.steps == plan.large_steps} == {32}
    ablation.run(plan)
    assert set(plan.trials.saved()) == trials


@pytest.mark.parametrize("arm", ablation.ARMS)
def test_an_arm_differs_from_the_reference_by_what_it_names(arm):
    plan = ablation.Plan()
    reference, changed = (asdict(plan.runs(each)[0]) for each in (plan.arms[0], arm))
    differing = {name: changed[name] for name in changed if changed[name] != reference[name]}
    assert differing == ablation.ARMS[arm]


@pytest.mark.slow
def test_a_trial_trains_the_model_of_the_trainer(texts):
    trial = LanguageTrial("adamw", 1e-2, 4, 0, batch_size=4, width=16, layers=1, data=str(texts))
    curve = held_out_loss(trial)["held_out_loss"]
    assert list(curve) == ["1", "2", "3", "4"]
    assert curve["4"] < curve["1"]
