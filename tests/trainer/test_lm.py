"""The language model program in whole runs: output files, resumes, and wrong input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from trainer.errors import (
    TRAINER,
    DivergenceError,
    StoppedError,
    UsageError,
    resume_command,
    run_command,
)
from trainer.language import SampleConfig, TextConfig, report
from trainer.models.decoder import DecoderConfig
from trainer.optimizers import OptimizerConfig
from trainer.programs import lm
from trainer.records.metrics import Metrics
from trainer.records.run_folder import RunFolder
from trainer.training import RunConfig

TINY = DecoderConfig(width=16, layers=1, heads=2)


def tiny(texts: Path, out: Path, **run) -> lm.Config:
    settings = {"steps": 6, "eval_every": 3, "checkpoint_every": 4, "quiet": True, "out": out}
    return lm.Config(
        text=TextConfig(data=texts, context=16, batch_size=4),
        decoder=TINY,
        optimizer=OptimizerConfig("adamw", warmup_steps=2, schedule="constant"),
        run=RunConfig(**{**settings, **run}),
        sample=SampleConfig(sample_tokens=8),
    )


@pytest.fixture(scope="session")
def finished(texts, tmp_path_factory):
    """Returns a run of six steps that tests must not change."""
    config = tiny(texts, tmp_path_factory.mktemp("finished") / "run")
    return config, lm.train(config)


@pytest.fixture(scope="session")
def half_done(texts, tmp_path_factory):
    config = tiny(texts, tmp_path_factory.mktemp("half") / "run", steps=3)
    lm.train(config)
    return config


@pytest.fixture
def half(half_done, tmp_path):
    """Returns a run of three steps that tests may resume or damage."""
    shutil.copytree(half_done.run.out, tmp_path / "run")
    resume = replace(half_done.run, steps=6, resume=True, out=tmp_path / "run")
    return replace(half_done, run=resume)


def weights(result):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(result.run.model)))


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): sha256(file.read_bytes()).hexdigest() for file in files}


# Runs


@pytest.mark.slow
def test_a_run_leaves_what_it_names(finished):
    config, result = finished
    folder = RunFolder(config.run.out)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    trained = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    held_out = {row["step"]: row["held_out/loss"] for row in rows if "held_out/loss" in row}
    assert trained == result.run.train_loss
    assert list(trained) == [1, 2, 3, 4, 5, 6]
    assert held_out == result.run.held_out_loss
    assert list(held_out) == [3, 6]
    assert result.nats_per_byte == held_out[6] < held_out[3] < np.log(256)
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    assert folder.sample.read_text() == result.prompt + result.sample
    assert list(folder.tensorboard.glob("events.*"))
    assert result.run.checkpoint == folder.checkpoints / "6"
    assert sorted(entry.name for entry in folder.checkpoints.iterdir()) == ["4", "6"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one(finished, half):
    # Metrics after the last checkpoint, which a crash leaves, must not count twice.
    metrics = RunFolder(half.run.out).metrics
    with metrics.open("a") as file:
        file.write('{"step": 4, "train/loss": 9.0}\n{"step": 5, "train/lo')
    resumed, (_, unbroken) = lm.train(half), finished
    jax.tree.map(np.testing.assert_array_equal, weights(resumed), weights(unbroken))
    assert resumed.run.train_loss == unbroken.run.train_loss
    assert resumed.run.held_out_loss == unbroken.run.held_out_loss
    assert resumed.sample == unbroken.sample


@pytest.mark.slow
def test_the_report_shows_the_whole_sample_and_every_path(finished, capsys):
    _, result = finished
    report(replace(result, sample="word " * 60 + "last"))
    printed = capsys.readouterr().out
    assert "last" in printed
    folder = result.run.folder
    for path in (folder.plot, folder.metrics, folder.tensorboard, folder.sample):
        assert str(path) in printed
    assert f"{result.nats_per_byte:.4f} nats per byte" in printed


@pytest.mark.slow
def test_resuming_a_finished_run_repeats_its_result(finished):
    config, result = finished
    before = contents(config.run.out / "checkpoints")
    again = lm.train(replace(config, run=replace(config.run, resume=True)))
    assert again.run.held_out_loss == result.run.held_out_loss
    assert again.sample == result.sample
    assert contents(config.run.out / "checkpoints") == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(texts, tmp_path):
    config = tiny(texts, tmp_path / "run")
    config = replace(config, optimizer=OptimizerConfig("sgd", learning_rate=1e30, warmup_steps=0))
    with pytest.raises(DivergenceError, match="try a smaller --learning-rate"):
        lm.train(config)


# Wrong input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decoder": {"width": 32}}, "width is 32 but was 16"),
        ({"optimizer": {"optimizer": "sgd"}}, "optimizer is sgd but was adamw"),
        ({"run": {"seed": 1}}, "seed is 1 but was 0"),
        ({"optimizer": {"schedule": "linear"}}, "schedule is linear but was constant, steps is 6"),
        ({"text": {"batch_size": 2}}, "batch_size is 2 but was 4"),
        ({"text": {"data": Path(__file__)}}, "text is sha256"),
    ],
)
def test_a_resume_with_other_settings_is_refused(finished, change, named):
    config, _ = finished
    before = contents(config.run.out)
    changed = {name: replace(getattr(config, name), **new) for name, new in change.items()}
    other = replace(config, **changed)
    with pytest.raises(UsageError, match=f"cannot resume .*{re.escape(named)}"):
        lm.train(replace(other, run=replace(other.run, resume=True)))
    assert contents(config.run.out) == before


@pytest.mark.slow
def test_a_new_run_does_not_touch_an_old_one_unless_told(half):
    fresh = replace(half, run=replace(half.run, resume=False))
    folder = RunFolder(half.run.out)
    (folder.path / "notes.txt").write_text("mine")
    before = contents(folder.path)
    with pytest.raises(UsageError, match="holds a run already; add --resume or --overwrite"):
        lm.train(fresh)
    assert contents(folder.path) == before
    folder.begin({"steps": 1}, overwrite=True)
    assert sorted(file.name for file in folder.path.iterdir()) == ["notes.txt", "settings.json"]
    assert json.loads(folder.settings.read_text()) == {"steps": 1}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("state/ocdbt.process_0/d/*", flip),
        ("state/ocdbt.process_0/d/*", Path.unlink),
        ("position/*.json", flip),
        ("_CHECKPOINT_METADATA", flip),
        ("sha256.json", Path.unlink),
        ("sha256.json", flip),
    ],
)
def test_a_damaged_checkpoint_is_refused(half, pattern, damage):
    checkpoint = half.run.out / "checkpoints" / "3"
    damage(max(checkpoint.glob(pattern), key=lambda file: file.stat().st_size))
    before = contents(half.run.out)
    with pytest.raises(UsageError, match=r"checkpoints/3 is damaged \(.*\); remove it") as caught:
        lm.train(half)
    assert "\n" not in str(caught.value)
    assert contents(half.run.out) == before


@pytest.mark.slow
def test_a_resume_behind_what_is_done_is_refused(half):
    with pytest.raises(UsageError, match="--steps 2: the run has done 3 already"):
        lm.train(replace(half, run=replace(half.run, steps=2)))


@pytest.mark.slow
def test_a_resume_without_a_run_is_refused(texts, tmp_path):
    config = tiny(texts, tmp_path / "none", resume=True)
    with pytest.raises(UsageError, match="none holds no run to resume; leave --resume out"):
        lm.train(config)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "missing", "--data {at}/missing does not exist; give a file or folder"),
        (lambda at: at, "{at} holds no UTF-8 text; give --data a file or folder"),
        (lambda at: touch(at / "empty.txt", ""), "{at}/empty.txt holds no UTF-8 text; give --data"),
        (
            lambda at: touch(at / "short.txt", "a" * 100),
            "the text is too short: its held-out part has 5 tokens, and --context 16 needs 17",
        ),
    ],
)
def test_unusable_data_is_refused(tmp_path, make, message):
    config = tiny(make(tmp_path), tmp_path / "run")
    with pytest.raises(UsageError, match=re.escape(message.format(at=tmp_path))):
        lm.train(config)
    assert not (tmp_path / "run").exists()


def touch(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--heads 3",
            "--width 128 with --heads 3: rotary positions need a width that is a multiple",
        ),
        ("--layers 0", "--width, --layers and --heads must be at least 1"),
        ("--context 0", "--context 0: give at least 1"),
        ("--steps 0", "--steps 0: give at least 1"),
        ("--seed -1", "--seed -1: give a number from 0"),
        ("--resume --overwrite", "--resume and --overwrite exclude each other"),
        ("--learning-rate 0", "--learning-rate 0.0: give a number above 0"),
        ("--learning-rate nan", "--learning-rate nan: give a number above 0"),
        ("--clip-threshold 0", "--clip-threshold 0.0: give a number above 0"),
        ("--weight-decay -1", "--weight-decay -1.0: give a number of at least 0"),
        ("--temperature -1", "--temperature -1.0: give at least 0"),
        ("--tokenizer bpe:10", "--tokenizer bpe:10: give bytes, or bpe:N with N from 256 to 65536"),
        ("--tokenizer words", "--tokenizer words: give bytes, or bpe:N with N from 256 to 65536"),
        ("--orthogonalizer best", "--orthogonalizer best: "),
        ("--orthogonalizer schatten:0.5", "svd, schatten:P, or give a number of at least 1"),
        ("--orthogonalizer schatten:x", "svd, schatten:P, or choose one of"),
        ("--orthogonalizer keller:few", "svd, schatten:P, or choose one of"),
        ("--orthogonalizer fast:9", "or 'fast' has 3 steps"),
        ("--scale large", "--scale large: choose match_rms, keller, spectral, update_norm, none"),
        ("--scale hidden_size:0", "--scale hidden_size:0: choose match_rms, "),
        (
            "--width 16 --layers 1 --heads 2 --out {texts}/0.txt",
            "--out {texts}/0.txt is a file; give a folder",
        ),
    ],
)
def test_unusable_settings_are_refused(texts, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = f"--data {texts} {arguments}".format(texts=texts).split()
    with pytest.raises(UsageError, match=re.escape(message.format(texts=texts))):
        lm.main(given)
    assert list(tmp_path.iterdir()) == []


# The command line


def test_wrong_input_ends_in_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: lm.main(["--data", "missing"]))
    assert ended.value.code == 2
    printed, errors = capsys.readouterr()
    assert errors == "error: --data missing does not exist; give a file or folder of text\n"
    assert printed == ""


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(texts, tmp_path, monkeypatch, capsys):
    tiny_sizes = "--width 16 --layers 1 --heads 2 --context 16 --batch-size 4 --optimizer adamw"
    arguments = f"--data {texts} {tiny_sizes} --steps 1000000 --out run".split()
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "trainer", "lm", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        try:
            while run.poll() is None and not (
                folder.metrics.exists() and folder.metrics.read_text()
            ):
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            printed, errors = run.communicate(timeout=120)
        finally:
            run.kill()
    assert (run.returncode, errors) == (130, "")
    stop, resume = printed.splitlines()[-2:]
    said = re.fullmatch(r"stopped by SIGINT after step (\d+) of 1000000; saved \S+", stop)
    assert said is not None
    step = int(said[1])
    given = resume.removeprefix("resume with: ").split()
    assert given == [*TRAINER, "lm", *arguments, "--resume"]

    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoppedError, match=f"after step {step + 2} of"):
        lm.main([*given[4:], "--stop-at", str(step + 2)])
    assert f"going on after step {step} in run" in capsys.readouterr().out
    with Metrics(folder, start=step + 2) as metrics:
        assert list(metrics.series("train/loss")) == list(range(1, step + 3))


@pytest.mark.parametrize(
    ("arguments", "resumed"),
    [
        ("lm", "lm --resume"),
        ("lm --overwrite --steps 5", "lm --steps 5 --resume"),
        ("lm --resume --stop-at 3 --seed 1", "lm --seed 1 --resume"),
        ("lm --stop-at=3", "lm --resume"),
    ],
)
def test_resume_command_drops_what_would_not_go_on(arguments, resumed):
    assert resume_command(arguments.split()) == f"{sys.executable} -m trainer {resumed}"
