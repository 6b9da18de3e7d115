"""From texts on disk to batches of tokens."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from trainer.data import bpe
from trainer.data.text import HELD_OUT_FRACTION, read_text, split_documents
from trainer.data.tokens import Tokens, tokenize
from trainer.data.windows import training_batches
from trainer.errors import UsageError


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
    monkeypatch.setattr(bpe, "_train_bpe", lambda *_: pytest.fail("trained again"))
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


def test_without_tokenizers_the_error_names_the_package_and_the_remedy(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "trainer.data.bpe")
    with pytest.raises(UsageError, match=r"needs the package tokenizers; install it by .*--group"):
        tokenize(read_text(texts), "bpe:300")
