"""The demo: two interleaved runs, their display and chart, and stopping both."""

import json
from dataclasses import replace

import pytest

from trainer.errors import StoppedError
from trainer.language import TextConfig
from trainer.models.decoder import DecoderConfig
from trainer.programs import demo
from trainer.records.charts import ticks
from trainer.records.side_by_side import SideBySide
from trainer.training import RunConfig


@pytest.fixture
def config(texts, tmp_path):
    return demo.Config(
        text=TextConfig(data=texts, context=16, batch_size=2),
        decoder=DecoderConfig(width=16, layers=1, heads=2),
        run=RunConfig(steps=4, eval_every=2, checkpoint_every=2, out=tmp_path / "demo"),
    )


def losses(config, name):
    file = config.run.out / name / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


@pytest.mark.slow
def test_both_runs_are_shown_together_stop_together_and_go_on(config, capsys):
    with pytest.raises(StoppedError, match="after step 3 of 4"):
        demo.train(replace(config, run=replace(config.run, stop_at=3)))
    assert "blocks/0/mlp/up/kernel" in capsys.readouterr().out
    resumed = replace(config, run=replace(config.run, resume=True))
    demo.report(resumed, demo.train(resumed))
    printed = capsys.readouterr().out
    for name in ("muon", "adamw"):
        assert list(losses(config, name)) == [1, 2, 3, 4]
        assert str(config.run.out / name) in printed
    # Both runs have the same weights and batches, so only the first losses are equal.
    muon, adamw = losses(config, "muon"), losses(config, "adamw")
    assert muon[1] == adamw[1]
    assert muon[3] != adamw[3]
    assert "held-out loss: Muon" in printed
    assert (config.run.out / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_step_is_shown_once_all_runs_have_done_it(capsys):
    with SideBySide(["a", "b"], 2, quiet=False) as display:
        for name in ("a", "b"):
            display.runs[name].begin(0, "", [f"settings of {name}"])
        display.runs["a"].trained(2, 1.5, 0.0)
        assert "loss" not in capsys.readouterr().out
        display.runs["b"].trained(2, 2.5, 0.0)
        display.runs["a"].evaluated(2, 1.25)
        display.runs["b"].evaluated(2, 2.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("loss: a 1.500   b 2.500")
    assert lines[1].endswith("held-out loss: a 1.2500   b 2.2500")


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (0, 300, "0 50 100 150 200 250 300"),
        (1.0, 2.2, "1.0 1.5 2.0"),
        (5.49, 5.545, "5.49 5.50 5.51 5.52 5.53 5.54"),
    ],
)
def test_ticks_are_round(low, high, written):
    assert " ".join(ticks(low, high).values()) == written
