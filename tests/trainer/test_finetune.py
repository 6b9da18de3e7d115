"""Fine-tuning a trained language model: losses, resumed runs, and wrong input."""

import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from trainer.data.text import read_text
from trainer.data.tokens import tokenize, tokenize_like
from trainer.devices import ONE_DEVICE
from trainer.errors import StoppedError, UsageError
from trainer.language import SampleConfig, TextConfig
from trainer.models.decoder import DecoderConfig
from trainer.optimizers import OptimizerConfig
from trainer.pretrained import Pretrained
from trainer.programs import finetune, lm
from trainer.records.checkpoints import Checkpoints
from trainer.records.run_folder import RunFolder
from trainer.training import RunConfig

pytestmark = pytest.mark.slow

TINY = DecoderConfig(width=16, layers=1, heads=2)
NEW = "pack my box with five dozen liquor jugs; sphinx of black quartz, judge my vow\n"


@pytest.fixture(scope="module")
def pretrained(texts, tmp_path_factory):
    """Returns a run of four steps that tests must not change."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    config = lm.Config(
        text=TextConfig(data=texts, context=16, batch_size=4),
        decoder=TINY,
        optimizer=OptimizerConfig("adamw", warmup_steps=2),
        run=RunConfig(steps=4, quiet=True, out=out),
        sample=SampleConfig(sample_tokens=1),
    )
    return config, lm.train(config)


@pytest.fixture(scope="module")
def config(pretrained, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "new.txt").write_text(NEW * 40)
    return finetune.Config(
        finetune.StartConfig(pretrained[0].run.out, texts),
        finetune.NewTextConfig(folder / "new.txt", batch_size=4),
        OptimizerConfig("muon", learning_rate=0.02, weight_decay=0.0, warmup_steps=1),
        RunConfig(steps=4, eval_every=2, quiet=True, out=folder / "run"),
        SampleConfig(sample_tokens=4),
    )


@pytest.fixture(scope="module")
def finished(config):
    return finetune.train(config)


def elsewhere(config, out, **run):
    return replace(config, run=replace(config.run, out=out, **run))


def weights(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


# Runs


def test_starts_from_the_weights_that_were_trained(pretrained):
    config, result = pretrained
    loaded = Pretrained.read(config.run.out).load(256, ONE_DEVICE)
    jax.tree.map(np.testing.assert_array_equal, weights(loaded), weights(result.run.model))


def test_losses_before_and_after(pretrained, finished):
    _, result = pretrained
    assert finished.before.old == pytest.approx(result.nats_per_byte, rel=1e-5)
    assert finished.after.new == pytest.approx(finished.language.nats_per_byte, rel=1e-5)
    assert finished.after.new < finished.before.new


def test_a_resumed_run_equals_an_unbroken_one(config, finished, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError, match="after step 2 of 4"):
        finetune.train(elsewhere(config, out, stop_at=2))
    resumed = finetune.train(elsewhere(config, out, resume=True))
    jax.tree.map(
        np.testing.assert_array_equal,
        weights(resumed.language.run.model),
        weights(finished.language.run.model),
    )
    assert (resumed.before, resumed.after) == (finished.before, finished.after)


def test_the_report_shows_what_was_forgotten(finished, capsys):
    finetune.report_losses(finished)
    printed = capsys.readouterr().out
    for losses in (finished.before, finished.after):
        assert f"{losses.new:.4f}" in printed
        assert f"{losses.old:.4f}" in printed


def test_a_text_is_encoded_by_the_tokenizer_of_another(texts, config, tmp_path):
    old = tokenize(read_text(texts), "bpe:300", tmp_path)
    text = read_text(config.text.data)
    new = tokenize_like(text, old)
    assert new.decode(new.train.tolist()) == text.train[0]
    assert new.encode("quick") == old.encode("quick")
    assert new.bytes_per_token * len(new.held_out) == pytest.approx(len(text.held_out[0]))


# Wrong input


def test_another_checkpoint_is_no_resume(pretrained, config, finished, tmp_path):
    out, start = tmp_path / "run", tmp_path / "other"
    shutil.copytree(config.run.out, out)
    first, _ = pretrained
    lm.train(replace(first, run=replace(first.run, steps=1, seed=1, out=start)))
    resumed = elsewhere(config, out, resume=True)
    resumed = replace(resumed, start=replace(config.start, pretrained=start))
    with pytest.raises(UsageError, match=r"cannot resume .*from is sha256 \w{12} but was sha256"):
        finetune.train(resumed)


def test_another_old_text_is_refused(config, tmp_path):
    start = replace(config.start, old_data=config.text.data)
    message = r"run was trained on another text than new.txt \(sha256 .*\); give it as --old-data"
    with pytest.raises(UsageError, match=message):
        finetune.train(elsewhere(replace(config, start=start), tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"query_latent": 8, "heads": None},
            "its settings lack heads",
        ),
        ({"width": 32}, "is of another model: it differs in 0/blocks/0/"),
        ({"layers": 2}, "is of another model: it differs in 0/blocks/1/"),
    ],
)
def test_settings_that_are_not_of_the_model_are_refused(config, tmp_path, change, message):
    start = tmp_path / "start"
    shutil.copytree(config.start.pretrained, start)
    file = RunFolder(start).settings
    settings = {**json.loads(file.read_text()), **change}
    kept = {name: value for name, value in settings.items() if value is not None}
    file.write_text(json.dumps(kept))
    changed = replace(config, start=replace(config.start, pretrained=start))
    with pytest.raises(UsageError, match=re.escape(message)):
        finetune.train(elsewhere(changed, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_part_of_another_model_is_refused(pretrained):
    checkpoints = Checkpoints(RunFolder(pretrained[0].run.out).checkpoints)
    model = lm.Decoder(replace(TINY, layers=2), 256, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="is of another model"):
        checkpoints.restore_part((nnx.state(model),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--from {at} --data {texts}", "--from {at} holds no run; give a folder that `python"),
        ("--from {run} --data {at}/no", "--data {at}/no does not exist; give a file or folder"),
        ("--from {run} --data {texts} --learning-rate 0", "--learning-rate 0.0: give a number"),
    ],
)
def test_unusable_settings_are_refused(
    pretrained, texts, tmp_path, monkeypatch, arguments, message
):
    places = {"at": tmp_path, "texts": texts, "run": pretrained[0].run.out}
    given = f"{arguments} --old-data {texts}".format(**places).split()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message.format(**places))):
        finetune.main(given)
    assert list(tmp_path.iterdir()) == []
