"""The notebooks are plain Python: they parse, and the slow tests run them to the last assertion."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tutorial"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
LIMIT_SECONDS = 60  # of CPU time: less on the two cores that a reader is promised

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)


def test_there_are_eight():
    assert [notebook.stem[0] for notebook in NOTEBOOKS] == list("12345678")


@each_notebook
def test_a_notebook_opens_with_a_title_and_asserts_what_it_says(notebook):
    text = notebook.read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    statements = list(ast.walk(ast.parse(text)))
    checks = [node for node in statements if isinstance(node, ast.Assert)]
    checks += [
        node
        for node in statements
        if isinstance(node, ast.Attribute) and node.attr.startswith("assert_")
    ]
    assert len(checks) >= 3


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(notebook):
    program = (
        "import os, runpy, sys; runpy.run_path(sys.argv[1]); "
        "spent = os.times(); print(spent.user + spent.system)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, notebook],
        cwd=FOLDER,
        env=os.environ | {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) < LIMIT_SECONDS
