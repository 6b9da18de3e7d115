"""The single-file examples: each runs by itself and compares Muon with AdamW."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BY_NAME = pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
ON_EIGHT_DEVICES = "sharded_training"


def run_two_steps(path: Path) -> None:
    """Runs an example after setting every constant named STEPS or …_STEPS to 2."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    for name in vars(example).copy():
        if name.endswith("STEPS"):
            setattr(example, name, 2)
    with jax.numpy_rank_promotion("allow"):
        example.main()


@BY_NAME
def test_an_example_prints_muon_beside_adamw(path, capsys):
    if path.stem == ON_EIGHT_DEVICES:  # JAX reads the number of devices once in a process
        command = [sys.executable, "-W", "error", __file__, str(path)]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        run_two_steps(path)
        printed = capsys.readouterr().out
    begins = {line.split()[0].rstrip(":") for line in printed.splitlines() if line.strip()}
    assert {"Muon", "AdamW"} <= begins


@BY_NAME
def test_an_example_is_one_short_file(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 100
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert f"Run: python examples/{path.name}" in docstring
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert "muon_jax" in imported
    assert not imported & {"trainer", "experiments", "benchmarks", "tests", "examples"}


if __name__ == "__main__":
    run_two_steps(Path(sys.argv[1]))
