"""What the examples are made of: texts, tokens, windows, the model, samples, optimizers."""

from dataclasses import replace
from functools import cache
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import tokens as tokens_module
from common.decoder import Decoder, DecoderConfig, rotate
from common.language import next_token_loss
from common.optimizers import (
    OptimizerConfig,
    OptimizerName,
    learning_rate_schedule,
    make_optimizer,
)
from common.sampling import sample_tokens
from common.text import HELD_OUT_FRACTION, read_text, split_documents
from common.tokens import Tokens, tokenize
from common.windows import training_batches
from flax import nnx

from muon_jax import newton_schulz

TINY = DecoderConfig(width=16, layers=1, heads=2)
GRADIENT = jax.random.normal(jax.random.key(0), (16, 32))


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

LOW_LOGITS = {"blocks/0/attention": jnp.ones(2)}  # nothing to clip


@pytest.fixture(scope="session")
def first_update(decoder):
    """By optimizer: the first update of each parameter, and the gradient that it came from."""
    parameters = nnx.state(decoder, nnx.Param)
    keys = iter(jax.random.split(jax.random.key(2), 20))
    gradients = jax.tree.map(lambda leaf: well_conditioned(next(keys), leaf.shape), parameters)

    @cache
    def update_by(optimizer, **options):
        config = OptimizerConfig(
            optimizer, warmup_steps=0, weight_decay=0.0, gradient_clip=1.0, **options
        )
        transform = make_optimizer(config, 10)
        state = transform.init(parameters)
        given = {"max_logits": LOW_LOGITS} if optimizer == "muon-clip" else {}
        updates, _ = jax.jit(transform.update)(gradients, state, parameters, **given)
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


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_every_optimizer_moves_every_parameter_downhill(first_update, optimizer):
    updates, gradients = first_update(optimizer)
    for name, update in updates.items():
        assert np.vdot(update, gradients[name]) < 0, name


@pytest.mark.parametrize("optimizer", ["muon", "muon-clip", "optax-muon"])
def test_muon_evens_out_the_hidden_matrices_and_nothing_else(first_update, optimizer):
    updates, _ = first_update(optimizer)
    spread = {
        name: np.linalg.cond(matrix(update)) for name, update in updates.items() if update.ndim > 1
    }
    hidden = {name for name in spread if name.startswith("blocks/")}
    assert len(hidden) == 7
    for name, ratio in spread.items():
        assert (ratio < 2) == (name in hidden), name


@pytest.mark.parametrize("optimizer", ["muon", "optax-muon", "adamw"])
def test_the_rest_of_the_model_moves_at_a_rate_of_its_own(first_update, optimizer):
    alike, _ = first_update(optimizer, learning_rate=0.01)
    apart, _ = first_update(optimizer, learning_rate=0.01, fallback_learning_rate=0.03)
    for path, update in apart.items():
        factor = 1 if path.startswith("blocks") and "norm" not in path else 3
        np.testing.assert_allclose(update, factor * alike[path], rtol=1e-5, err_msg=path)


def test_attention_moves_at_a_rate_of_its_own(first_update):
    alike, _ = first_update("muon")
    apart, _ = first_update("muon", attention_rate=1.5)
    for path, update in apart.items():
        factor = 1.5 if "/attention/" in path else 1
        np.testing.assert_allclose(update, factor * alike[path], rtol=1e-5, err_msg=path)
    assert any("/attention/" in path for path in apart)


@pytest.mark.parametrize(
    ("scale", "rms"),
    [
        ("match_rms", 0.2),
        ("update_norm", 0.2),
        ("hidden_size:16", 0.2 * np.sqrt(16 / 32)),
        ("none", 1 / np.sqrt(32)),
    ],
)
def test_scale_gives_the_size_of_the_update(scale, rms):
    update = muon_update(OptimizerConfig(orthogonalizer="svd", scale=scale))
    assert np.sqrt(np.mean(update**2)) == pytest.approx(rms, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "orthogonalizer"),
    [
        ("keller:7", newton_schulz("keller", steps=7)),
        ("jordan:3", newton_schulz("keller", steps=3, normalization="frobenius")),
    ],
)
def test_orthogonalizer_takes_the_steps_that_its_name_says(name, orthogonalizer):
    update = muon_update(OptimizerConfig(orthogonalizer=name, scale="none"))
    np.testing.assert_allclose(update, orthogonalizer(GRADIENT[None])[0], atol=1e-5)


def muon_update(config):
    """Minus the first step on one matrix, over the learning rate."""
    config = replace(config, warmup_steps=0, weight_decay=0.0, learning_rate=1.0)
    transform, params = make_optimizer(config, 10), {"gate": {"kernel": GRADIENT}}
    updates, _ = transform.update(params, transform.init(params), params)
    return -np.asarray(updates["gate"]["kernel"])


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
