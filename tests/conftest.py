"""Shared by all tests: one CPU device, quiet XLA, and matrices with known singular values."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# LLVM's optimization takes most of a test's time, for small programs that run once or twice.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import numpy as np
import pytest
from array_annotations import PACKAGES
from hypothesis.database import DirectoryBasedExampleDatabase
from jaxtyping import install_import_hook

install_import_hook(PACKAGES, "array_annotations.checked")
jax.config.update("jax_numpy_rank_promotion", "raise")

WORDS = "the quick brown fox jumps over a lazy dog, größer und schöner; 0 1 2\n"

# Every run draws new examples; `make test-all` draws more. Hypothesis saves a failing example in
# a folder that git ignores. Later runs with this folder, also in CI, try the example first. The
# blob that Hypothesis prints reproduces the example without the folder.
FAILING_EXAMPLES = Path(__file__).resolve().parent.parent / ".hypothesis" / "examples"
hypothesis.settings.register_profile(
    "muon_jax",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "10")),
    derandomize=False,
    database=DirectoryBasedExampleDatabase(FAILING_EXAMPLES),
    print_blob=True,
)
hypothesis.settings.load_profile("muon_jax")


# Coverage costs these tests a tenth of their time, and other tests run the same lines.
UNCOVERED = ("examples", "experiments", "trainer")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in UNCOVERED:
            item.add_marker("no_cover")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Returns a folder of thirty small texts."""
    folder = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    for number in range(30):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(WORDS.split(" "), 100)))
    return folder
