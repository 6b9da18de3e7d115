"""Every experiment makes its tables and figure from the saved results."""

import importlib

import pytest

from experiments import command_line, trials

EXPERIMENTS = sorted(
    path.stem
    for path in (command_line.ROOT / "experiments").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8") and path.stem != "compare_optimizers"
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_saved_results_make_the_report(name, monkeypatch):
    monkeypatch.setattr(trials, "ProcessPoolExecutor", lambda *_: pytest.fail("would train"))
    experiment = importlib.import_module(f"experiments.{name}")
    plan = experiment.Plan()
    rows = [line for line in experiment.report(plan).splitlines() if line.startswith("|")]
    assert len(rows) > 3
    draws = [*getattr(experiment, "FIGURES", {}).values()]
    draws += [experiment.draw] if hasattr(experiment, "draw") else []
    assert all(axes.has_data() for draw in draws for axes in draw(plan).axes)
