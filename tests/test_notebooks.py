"""The notebooks: their texts, which slow tests run to the last assertion, and executed cells."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
LARGEST = 600_000  # bytes, because GitHub shows notebooks and the history keeps them
LIMIT_SECONDS = 60  # seconds of CPU time; two cores take less

IMPORT = re.compile(r"^(?:import (\w+)|from (\w+)[\w.]* import)", re.MULTILINE)

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


@each_notebook
def test_the_executed_notebook_has_the_cells_of_its_text(notebook):
    jupytext = pytest.importorskip("jupytext")
    text = jupytext.read(notebook, fmt="py:percent").cells
    executed = read(notebook).cells
    assert [(cell.cell_type, cell.source) for cell in executed] == [
        (cell.cell_type, cell.source) for cell in text
    ]


@each_notebook
def test_the_executed_notebook_is_small_and_shows_what_its_cells_made(notebook):
    assert notebook.with_suffix(".ipynb").stat().st_size < LARGEST
    cells = [cell for cell in read(notebook).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    made = sum(cell.source.count("plt.subplots(") for cell in cells)
    assert len(figures) >= made


@each_notebook
def test_the_first_code_cell_installs_what_the_notebook_imports(notebook):
    cells = [cell for cell in read(notebook).cells if cell.cell_type == "code"]
    needed = re.findall(r'^    "(\w+)": ', cells[0].source, re.MULTILINE)
    program = "\n".join(cell.source for cell in cells)
    modules = {name for found in IMPORT.findall(program) for name in found if name}
    brought = {"jax", "numpy", "optax"}  # of muon_jax
    assert modules - brought - sys.stdlib_module_names == set(needed)


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


def read(notebook):
    jupytext = pytest.importorskip("jupytext")
    return jupytext.read(notebook.with_suffix(".ipynb"))
