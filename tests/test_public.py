"""The public names: exports, docstrings, and examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import muon_jax
from muon_jax import migrate, recipes

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = {name for name in vars(muon_jax) if not name.startswith("_")}
MODULES = sorted(module.name for module in pkgutil.walk_packages(muon_jax.__path__, "muon_jax."))


def test_the_exports_are_these():
    public_modules = {name for name in EXPORTS if inspect.ismodule(getattr(muon_jax, name))}
    assert EXPORTS - public_modules == {
        "Distribution",
        "ExplainedLeaf",
        "Explanation",
        "Leaf",
        "MatrixAxes",
        "MomentumRmsState",
        "MuonState",
        "QKClipState",
        "QKPart",
        "QKTarget",
        "Rule",
        "QuantizedState",
        "SecondMoment",
        "SkipNonfiniteState",
        "Soap",
        "Split",
        "TracedAxes",
        "TracedLeaf",
        "adamw",
        "clip_qk",
        "explain",
        "hidden_size",
        "inverse_sqrt",
        "label_params",
        "matrix_axes",
        "momentum_rms",
        "muon",
        "muon_clip",
        "newton_schulz",
        "orthogonalize_tree",
        "polar_by_svd",
        "polar_to",
        "quantize_state",
        "scale_by_momentum_rms",
        "scale_by_muon",
        "scale_by_path",
        "skip_nonfinite",
        "steepest_descent",
        "trace_axes",
        "zero1_shardings",
    }


SIDE_DOORS = {
    recipes: [
        "best",
        "keller",
        "kimi_k2",
        "moonlight",
        "optax",
        "procrustes",
        "strongest",
        "torch",
    ],
    migrate: ["from_adamw", "from_optax", "from_torch", "to_optax", "to_torch"],
}
DOORS = {muon_jax: sorted(EXPORTS)} | SIDE_DOORS


def test_the_side_doors_lead_to_these():
    assert all(sorted(door.__all__) == names for door, names in SIDE_DOORS.items())


@pytest.mark.parametrize(
    ("module", "name"), [(door, name) for door, names in DOORS.items() for name in names]
)
def test_every_export_is_documented(module, name):
    value = getattr(module, name)
    text = inspect.getdoc(value)
    assert text
    if "any other argument of `muon" in text:  # documented where it passes its arguments
        text += inspect.getdoc(muon_jax.muon) or ""
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        for argument in signature.parameters:
            assert argument in text, f"{name} does not document {argument}"
        assert "Examples:" in text


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module):
    loaded = importlib.import_module(module)
    scope = {**vars(muon_jax), **vars(loaded), "jnp": importlib.import_module("jax.numpy")}
    results = doctest.testmod(loaded, extraglobs=scope, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_one_import_opens_every_door_without_flax():
    doors = ", ".join(name for name in MODULES if "._" not in name)
    program = f"import sys; sys.modules['flax'] = None; import muon_jax; {doors}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_version_is_that_of_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    latest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert latest
    assert latest[1] == project["version"] == muon_jax.__version__


def test_no_file_is_longer_than_four_hundred_lines():
    files = [path for folder in ("muon_jax", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []
