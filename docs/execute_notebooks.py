"""Executes the notebooks and writes them with their outputs beside their text.

python docs/execute_notebooks.py [NAME ...]
"""

import base64
import io
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
WIDEST = 900  # pixels of a figure
COLOURS = 128  # of a figure: a third of the bytes, and no difference to be seen
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def execute(text: Path) -> Any:
    """Returns the notebook of a text with fresh outputs, equal but for these on every run."""
    notebook = jupytext.read(text, fmt="py:percent")
    notebook.metadata = {"kernelspec": KERNEL}
    notebook.nbformat_minor = 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": text.parent}}, record_timing=False
    ).execute()
    notebook.metadata = {"kernelspec": KERNEL}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.quantize(COLOURS).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def main() -> None:
    chosen = sys.argv[1:] or [text.stem for text in sorted(FOLDER.glob("*.py"))]
    for name in chosen:
        nbformat.write(execute(FOLDER / f"{name}.py"), FOLDER / f"{name}.ipynb")
        print(f"notebooks/{name}.ipynb")


if __name__ == "__main__":
    main()
