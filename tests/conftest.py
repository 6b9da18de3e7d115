"""What every test shares: one CPU device, quiet XLA, and matrices with known singular values."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

WORDS = "the quick brown fox jumps over a lazy dog, größer und schöner; 0 1 2\n"

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=30, derandomize=True, database=None
)
hypothesis.settings.load_profile("default")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of thirty small texts."""
    folder = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    for number in range(30):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(WORDS.split(" "), 100)))
    return folder
