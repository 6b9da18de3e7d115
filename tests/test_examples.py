"""The language-model example with tiny settings: data, model, runs, resumes and wrong input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_lm
from common import tokens as tokens_module
from common.decoder import Decoder, DecoderConfig, rotate
from common.errors import DivergenceError, StoppedError, UsageError, resume_command, run_command
from common.language import SampleConfig, TextConfig, next_token_loss
from common.metrics import Metrics
from common.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer
from common.run_folder import RunFolder
from common.sampling import sample_tokens
from common.text import HELD_OUT_FRACTION, read_text, split_documents
from common.tokens import Tokens, tokenize
from common.training import RunConfig
from common.windows import training_batches
from flax import nnx

SCRIPT = Path(__file__).parents[1] / "examples" / "train_lm.py"
WORDS = "the quick brown fox jumps over a lazy dog, größer und schöner; 0 1 2\n"
TINY = DecoderConfig(width=16, layers=1, heads=2)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of thirty small texts."""
    folder = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    for number in range(30):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(WORDS.split(" "), 100)))
    return folder


def tiny(texts: Path, out: Path, **run) -> train_lm.Config:
    settings = {"steps": 6, "eval_every": 4, "checkpoint_every": 4, "quiet": True, "out": out}
    return train_lm.Config(
        text=TextConfig(data=texts, context=16, batch_size=4),
        decoder=TINY,
        optimizer=OptimizerConfig("adamw", warmup_steps=2),
        run=RunConfig(**{**settings, **run}),
        sample=SampleConfig(sample_tokens=8),
    )


@pytest.fixture(scope="session")
def finished(texts, tmp_path_factory):
    """A run of six steps, not to be written to."""
    config = tiny(texts, tmp_path_factory.mktemp("finished") / "run")
    return config, train_lm.train(config)


@pytest.fixture(scope="session")
def stopped_once(texts, tmp_path_factory):
    config = tiny(texts, tmp_path_factory.mktemp("stopped") / "run", stop_at=3)
    with pytest.raises(StoppedError, match="stopped by --stop-at after step 3 of 6"):
        train_lm.train(config)
    return config


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run stopped on its way, between two checkpoints, and to be resumed."""
    shutil.copytree(stopped_once.run.out, tmp_path / "run")
    resume = replace(stopped_once.run, stop_at=None, resume=True, out=tmp_path / "run")
    return replace(stopped_once, run=resume)


def weights(result):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(result.run.model)))


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): sha256(file.read_bytes()).hexdigest() for file in files}


# Text


def test_split_is_of_whole_files_and_depends_on_nothing_but_them():
    documents = {f"{number}.txt": f"{number} " * 50 for number in range(100, 200)}
    train, held_out = split_documents(documents)
    shuffled = dict(reversed(documents.items()))
    assert split_documents(shuffled) == (train, held_out)
    assert sorted(train + held_out) == sorted(documents.values())
    assert len(held_out) == HELD_OUT_FRACTION * len(documents)


@pytest.mark.parametrize("sizes", [[1000], [1000, 900, 800], [10_000, 1]])
def test_split_of_few_or_large_files_holds_out_the_end(sizes):
    documents = {str(number): "abcdefghij"[number] * size for number, size in enumerate(sizes)}
    train, held_out = split_documents(documents)
    whole = "\n".join(documents.values())
    assert train[0] + held_out[0] == whole
    assert len(held_out[0]) == pytest.approx(HELD_OUT_FRACTION * len(whole), abs=1)


def test_default_text_is_the_standard_library():
    text = read_text(None)
    assert sum(map(len, text.train)) > 5e6
    assert not any("import idlelib.run" in document for document in text.train)
    assert any("class OrderedDict(dict)" in document for document in text.train + text.held_out)


def test_folder_skips_what_is_no_text(tmp_path):
    (tmp_path / "good.txt").write_text("words " * 20)
    (tmp_path / "good.md").write_text("other words " * 20)
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    text = read_text(tmp_path, "*.txt")
    assert "".join(text.train + text.held_out) == "words " * 20


# Tokens and windows


@pytest.mark.parametrize("spec", ["bytes", "bpe:300"])
def test_tokens_give_back_the_text(texts, tmp_path, spec):
    text = read_text(texts)
    tokens = tokenize(text, spec, tmp_path)
    for ids, part in ((tokens.train, text.train), (tokens.held_out, text.held_out)):
        assert tokens.decode(ids.tolist()) == "".join(part)
        assert ids.max() < tokens.vocabulary
    held_out_bytes = len("".join(text.held_out).encode())
    assert tokens.bytes_per_token * len(tokens.held_out) == pytest.approx(held_out_bytes)
    assert tokens.decode(tokens.encode("ein größerer Fuchs")) == "ein größerer Fuchs"


def test_trained_tokenizer_is_kept_by_content(texts, tmp_path, monkeypatch):
    text = read_text(texts)
    first = tokenize(text, "bpe:300", tmp_path)
    monkeypatch.setattr(tokens_module, "_train_bpe", lambda *_: pytest.fail("trained again"))
    again = tokenize(text, "bpe:300", tmp_path)
    assert again.digest == first.digest
    assert again.encode("quick brown") == first.encode("quick brown")
    for other in (replace(text, train=[*text.train, "more"]), replace(text, held_out=["x"])):
        with pytest.raises(pytest.fail.Exception):
            tokenize(other, "bpe:300", tmp_path)
    with pytest.raises(pytest.fail.Exception):
        tokenize(text, "bpe:301", tmp_path)


@pytest.mark.parametrize("damage", [b"", b"no zip file", None])
def test_damaged_token_cache_is_made_again(texts, tmp_path, damage):
    text = read_text(texts)
    first = tokenize(text, "bpe:300", tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert tokenize(text, "bpe:300", tmp_path).digest == first.digest
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def numbered(count: int) -> Tokens:
    return Tokens(np.arange(count, dtype=np.uint16), np.arange(2, dtype=np.uint16), 1.0)


def test_each_epoch_has_every_window_once_in_a_new_order():
    batches = training_batches(numbered(4 * 12 + 1), context=4, batch_size=12, seed=0)
    first, second = next(batches), next(batches)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), 4 * np.arange(12))
        np.testing.assert_array_equal(epoch - epoch[:, :1], np.tile(np.arange(5), (12, 1)))
    assert (first != second).any()


def test_batches_go_on_from_a_saved_position():
    def begin():
        return training_batches(numbered(1000), context=4, batch_size=3, seed=1)

    batches, later = begin(), begin()
    for _ in range(5):
        next(batches)
    later.set_state(batches.get_state())
    for _ in range(100):  # into the second epoch
        np.testing.assert_array_equal(next(later), next(batches))


# Model and sampling


@pytest.fixture(scope="session")
def decoder():
    """A tiny decoder whose head is not zero, so that its logits say something."""
    model = nnx.jit(lambda: Decoder(TINY, 50, rngs=nnx.Rngs(0)))()
    model.head.kernel[...] = jax.random.normal(jax.random.key(1), (16, 50))
    return model


CONTEXT = 8


@nnx.jit
def _logits(model, tokens):
    return model(tokens[None])[0]


def logits(model, tokens):
    """Logits after each token, by one compiled shape: what is right of a token cannot matter."""
    padded = np.pad(tokens, (0, CONTEXT - len(tokens)))
    return np.asarray(_logits(model, padded))[: len(tokens)]


def test_first_loss_is_that_of_a_uniform_guess():
    model = nnx.jit(lambda: Decoder(TINY, 50, rngs=nnx.Rngs(0)))()
    loss, _ = nnx.jit(next_token_loss)(model, jnp.arange(18).reshape(2, 9))
    assert float(loss) == pytest.approx(np.log(50), rel=1e-6)


def test_logits_do_not_see_later_tokens(decoder):
    tokens = np.arange(8)
    before, after = logits(decoder, tokens), logits(decoder, np.where(tokens == 5, 40, tokens))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(axis=-1).all()


def test_rotary_positions_see_only_distances():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    at = [rotate(jnp.tile(x, (1, 9, 1, 1)))[0, :, 0] for x in (query, key)]
    products = at[0] @ at[1].T
    for distance in range(-8, 9):
        diagonal = jnp.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-5)
    assert float(jnp.abs(products[0, 0] - products[0, 8])) > 1e-3


def test_kernels_have_the_names_and_shapes_that_routing_reads(decoder):
    shapes = {name: leaf.shape for name, leaf in named(nnx.state(decoder, nnx.Param)).items()}
    assert shapes == {
        "embed/embedding": (50, 16),
        "blocks/0/attention/query/kernel": (16, 2, 8),
        "blocks/0/attention/key/kernel": (16, 2, 8),
        "blocks/0/attention/value/kernel": (16, 2, 8),
        "blocks/0/attention/out/kernel": (2, 8, 16),
        "blocks/0/mlp/gate/kernel": (16, 64),
        "blocks/0/mlp/up/kernel": (16, 64),
        "blocks/0/mlp/down/kernel": (64, 16),
        "blocks/0/attention_norm/scale": (16,),
        "blocks/0/mlp_norm/scale": (16,),
        "norm/scale": (16,),
        "head/kernel": (16, 50),
    }


def test_sample_takes_the_likeliest_token_in_a_sliding_window(decoder):
    drawn = sample_tokens(
        decoder, jnp.array([3, 1, 4]), count=12, context=CONTEXT, temperature=0.0, seed=0
    )
    seen = [3, 1, 4]
    for _ in range(12):
        seen.append(int(logits(decoder, seen[-CONTEXT:])[-1].argmax()))
    assert drawn.tolist() == seen[3:]


def test_sample_is_fixed_by_its_seed(decoder):
    def draw(seed):
        prompt = jnp.array([3, 1, 4])
        return sample_tokens(decoder, prompt, count=12, context=CONTEXT, temperature=1.0, seed=seed)

    assert draw(0).tolist() == draw(0).tolist() != draw(1).tolist()


# Optimizers


@pytest.fixture(scope="session")
def first_update(decoder):
    """By optimizer: the first update of each parameter, and the gradient that it came from."""
    parameters = nnx.state(decoder, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(2), 20))
    gradients = jax.tree.map(lambda leaf: well_conditioned(next(keys), leaf.shape), parameters)

    @cache
    def update_by(optimizer):
        config = OptimizerConfig(optimizer, warmup_steps=0, weight_decay=0.0, gradient_clip=1.0)
        transform = make_optimizer(config, 10)
        updates, _ = jax.jit(transform.update)(gradients, transform.init(parameters), parameters)
        return named(updates), named(gradients)

    return update_by


def well_conditioned(key, shape):
    """A random gradient whose matrix has singular values from 0.1 to 1."""
    left, _, right = np.linalg.svd(matrix(jax.random.normal(key, shape)), full_matrices=False)
    return jnp.asarray((left * np.linspace(0.1, 1, len(right))) @ right).reshape(shape)


def matrix(leaf):
    """The inputs × outputs matrix of any parameter of the tiny decoder, or a vector as one row."""
    if leaf.shape == (2, 8, 16):
        return leaf.reshape(16, 16)
    return leaf.reshape(leaf.shape[0] if leaf.ndim > 1 else 1, -1)


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


@pytest.mark.parametrize("optimizer", ["muon", "optax-muon", "adamw", "lion", "sgd"])
def test_every_optimizer_moves_every_parameter_downhill(first_update, optimizer):
    updates, gradients = first_update(optimizer)
    for name, update in updates.items():
        assert np.vdot(update, gradients[name]) < 0, name


@pytest.mark.parametrize("optimizer", ["muon", "optax-muon"])
def test_muon_evens_out_the_hidden_matrices_and_nothing_else(first_update, optimizer):
    updates, _ = first_update(optimizer)
    spread = {
        name: np.linalg.cond(matrix(update)) for name, update in updates.items() if update.ndim > 1
    }
    hidden = {name for name in spread if name.startswith("blocks/")}
    assert len(hidden) == 7
    for name, ratio in spread.items():
        assert (ratio < 2) == (name in hidden), name


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"),
    [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.0)],
)
def test_learning_rate_rises_to_its_peak_and_falls(schedule, halfway, end):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule)
    rates = np.asarray(learning_rate_schedule(config, 1010)(jnp.arange(1010)))
    assert (rates > 0).all()
    assert (np.diff(rates[:11]) > 0).all()
    assert rates[10] == rates.max() == 2.0
    assert rates[510] == pytest.approx(2 * halfway)
    assert rates[-1] == pytest.approx(2 * end, abs=0.02)
    assert (np.diff(rates[10:]) <= 0).all()


# Runs


def test_a_run_leaves_what_it_names(finished):
    config, result = finished
    folder = RunFolder(config.run.out)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    trained = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    held_out = {row["step"]: row["held_out/loss"] for row in rows if "held_out/loss" in row}
    assert trained == result.run.train_loss
    assert list(trained) == [1, 2, 3, 4, 5, 6]
    assert held_out == result.run.held_out_loss
    assert list(held_out) == [4, 6]
    assert result.nats_per_byte == held_out[6] < held_out[4] < np.log(256)
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    assert folder.sample.read_text() == result.prompt + result.sample
    assert list(folder.tensorboard.glob("events.*"))
    assert result.run.checkpoint == folder.checkpoints / "6"
    assert sorted(entry.name for entry in folder.checkpoints.iterdir()) == ["4", "6"]


def test_a_stopped_and_resumed_run_equals_an_unbroken_one(finished, stopped):
    # What a crash after the last checkpoint would leave is not to be counted twice.
    metrics = RunFolder(stopped.run.out).metrics
    with metrics.open("a") as file:
        file.write('{"step": 4, "train/loss": 9.0}\n{"step": 5, "train/lo')
    resumed, (_, unbroken) = train_lm.train(stopped), finished
    jax.tree.map(np.testing.assert_array_equal, weights(resumed), weights(unbroken))
    assert resumed.run.train_loss == unbroken.run.train_loss
    assert resumed.run.held_out_loss == unbroken.run.held_out_loss
    assert resumed.sample == unbroken.sample


def test_resuming_a_finished_run_repeats_its_result(finished):
    config, result = finished
    before = contents(config.run.out / "checkpoints")
    again = train_lm.train(replace(config, run=replace(config.run, resume=True)))
    assert again.run.held_out_loss == result.run.held_out_loss
    assert again.sample == result.sample
    assert contents(config.run.out / "checkpoints") == before


def test_a_constant_rate_may_go_on_for_longer(texts, tmp_path):
    config = tiny(texts, tmp_path / "run", steps=2)
    config = replace(config, optimizer=replace(config.optimizer, schedule="constant"))
    train_lm.train(config)
    longer = replace(config.run, steps=4, resume=True)
    assert list(train_lm.train(replace(config, run=longer)).run.train_loss) == [1, 2, 3, 4]
    with pytest.raises(UsageError, match=re.escape("--steps 2: the run has done 4 already")):
        train_lm.train(replace(config, run=replace(longer, steps=2)))


def test_a_loss_that_is_not_finite_ends_the_run(texts, tmp_path):
    config = tiny(texts, tmp_path / "run")
    config = replace(config, optimizer=OptimizerConfig("sgd", learning_rate=1e30, warmup_steps=0))
    with pytest.raises(DivergenceError, match="try a smaller --learning-rate"):
        train_lm.train(config)


# Wrong input


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decoder": replace(TINY, width=32)}, "width is 32 but was 16"),
        ({"optimizer": OptimizerConfig("sgd", warmup_steps=2)}, "optimizer is sgd but was adamw"),
        ({"run": {"seed": 1}}, "seed is 1 but was 0"),
        ({"run": {"steps": 8}}, "steps is 8 but was 6"),
        ({"text": {"batch_size": 2}}, "batch_size is 2 but was 4"),
        ({"text": {"data": SCRIPT}}, "text is sha256"),
    ],
)
def test_a_resume_with_other_settings_is_refused(finished, change, named):
    config, _ = finished
    before = contents(config.run.out)
    changes = {
        name: replace(getattr(config, name), **new) if isinstance(new, dict) else new
        for name, new in change.items()
    }
    other = replace(config, **changes)
    with pytest.raises(UsageError, match=f"cannot resume .*{re.escape(named)}"):
        train_lm.train(replace(other, run=replace(other.run, resume=True)))
    assert contents(config.run.out) == before


def test_a_new_run_does_not_touch_an_old_one_unless_told(stopped):
    fresh = replace(stopped, run=replace(stopped.run, resume=False))
    folder = RunFolder(stopped.run.out)
    (folder.path / "notes.txt").write_text("mine")
    before = contents(folder.path)
    with pytest.raises(UsageError, match="holds a run already; add --resume or --overwrite"):
        train_lm.train(fresh)
    assert contents(folder.path) == before
    folder.begin({"steps": 1}, overwrite=True)
    assert sorted(file.name for file in folder.path.iterdir()) == ["notes.txt", "settings.json"]
    assert json.loads(folder.settings.read_text()) == {"steps": 1}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("state/ocdbt.process_0/d/*", flip),
        ("state/ocdbt.process_0/d/*", Path.unlink),
        ("position/*.json", flip),
        ("sha256.json", Path.unlink),
        ("sha256.json", flip),
    ],
)
def test_a_damaged_checkpoint_is_refused(stopped, pattern, damage):
    checkpoint = stopped.run.out / "checkpoints" / "3"
    damage(max(checkpoint.glob(pattern), key=lambda file: file.stat().st_size))
    before = contents(stopped.run.out)
    with pytest.raises(UsageError, match=r"checkpoints/3 is damaged \(.*\); remove it") as caught:
        train_lm.train(stopped)
    assert "\n" not in str(caught.value)
    assert contents(stopped.run.out) == before


def test_a_resume_without_a_run_is_refused(texts, tmp_path):
    config = tiny(texts, tmp_path / "none", resume=True)
    with pytest.raises(UsageError, match="none holds no run to resume; leave --resume out"):
        train_lm.train(config)
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
        train_lm.train(config)
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
        ("--weight-decay -1", "--weight-decay -1.0: give a number of at least 0"),
        ("--temperature -1", "--temperature -1.0: give at least 0"),
        ("--tokenizer bpe:10", "--tokenizer bpe:10: give bytes, or bpe:N with N from 256 to 65536"),
        ("--tokenizer words", "--tokenizer words: give bytes, or bpe:N with N from 256 to 65536"),
        ("--out {texts}/0.txt", "--out {texts}/0.txt is a file; give a folder"),
    ],
)
def test_unusable_settings_are_refused(texts, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = f"--data {texts} {arguments}".format(texts=texts).split()
    monkeypatch.setattr(sys, "argv", ["train_lm.py", *given])
    with pytest.raises(UsageError, match=re.escape(message.format(texts=texts))):
        train_lm.main()
    assert list(tmp_path.iterdir()) == []


# The command line


def test_wrong_input_ends_in_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_lm.py", "--data", "missing"])
    with pytest.raises(SystemExit) as ended:
        run_command(train_lm.main)
    assert ended.value.code == 2
    printed, errors = capsys.readouterr()
    assert errors == "error: --data missing does not exist; give a file or folder of text\n"
    assert printed == ""


def test_ctrl_c_saves_and_says_how_to_go_on(texts, tmp_path, monkeypatch, capsys):
    tiny_sizes = "--width 16 --layers 1 --heads 2 --context 16 --batch-size 4 --optimizer adamw"
    arguments = f"--data {texts} {tiny_sizes} --steps 1000000 --out run".split()
    run = subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = RunFolder(tmp_path / "run")
    while run.poll() is None and not (folder.metrics.exists() and folder.metrics.read_text()):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    printed, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (130, "")
    stop, resume = printed.splitlines()[-2:]
    said = re.fullmatch(r"stopped by SIGINT after step (\d+) of 1000000; saved \S+", stop)
    assert said is not None
    step = int(said[1])
    given = resume.removeprefix("resume with: ").split()
    assert given == [sys.executable, str(SCRIPT), *arguments, "--resume"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*given[1:], "--stop-at", str(step + 2)])
    with pytest.raises(StoppedError, match=f"after step {step + 2} of"):
        train_lm.main()
    assert f"going on after step {step} in run" in capsys.readouterr().out
    with Metrics(folder, start=step + 2) as metrics:
        assert list(metrics.series("train/loss")) == list(range(1, step + 3))


@pytest.mark.parametrize(
    ("arguments", "resumed"),
    [
        ("a.py", "a.py --resume"),
        ("a.py --overwrite --steps 5", "a.py --steps 5 --resume"),
        ("a.py --resume --stop-at 3 --seed 1", "a.py --seed 1 --resume"),
        ("a.py --stop-at=3", "a.py --resume"),
    ],
)
def test_resume_command_drops_what_would_not_go_on(arguments, resumed):
    assert resume_command(arguments.split()) == f"{sys.executable} {resumed}"
