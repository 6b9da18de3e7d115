"""The pages: every public name stands in the reference, links lead somewhere, examples run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import muon_jax

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(file for file in ROOT.glob("*.md")),
    *(file for file in (ROOT / "docs").rglob("*.md") if "_build" not in file.parts),
]
SOURCES = [*PAGES, *(ROOT / "docs" / "tutorial").glob("*.py")]
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


def named(file):
    return str(file.relative_to(ROOT))


def public_names(module):
    """Lists what a module defines, and what it exports from a private one by an alias."""
    aliases = re.findall(r"muon_jax\S* import \w+ as (\w+)$", inspect.getsource(module), re.M)
    return [
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (name in aliases or getattr(value, "__module__", "") == module.__name__)
    ]


def test_every_public_name_stands_once_in_the_reference():
    modules = [module.name for module in pkgutil.iter_modules(muon_jax.__path__, "muon_jax.")]
    doors = [name for name in modules if not name.startswith("muon_jax._")]
    public = [
        name
        for door in ("muon_jax", *doors)
        for name in public_names(importlib.import_module(door))
    ]
    reference = "\n".join(
        page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    )
    documented = re.findall(r"^\.\. auto\w+:: (\S+)$", reference, re.MULTILINE)
    assert sorted(documented) == sorted(public)


@pytest.mark.parametrize("source", SOURCES, ids=named)
def test_links_to_files_lead_somewhere(source):
    targets = [each for each in LINK.findall(source.read_text()) if "://" not in each]
    assert [each for each in targets if not (source.parent / each).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if ">>>" in page.read_text()], ids=named)
def test_the_examples_in_a_page_run(page):
    text = re.sub(r"^```.*$", "", page.read_text(), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {"muon_jax": muon_jax}, named(page), None, 0)
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=named)
def test_every_page_stands_in_the_table_of_contents(page):
    index = (ROOT / "docs" / "index.md").read_text()
    name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
    assert name == "index" or re.search(rf"^{re.escape(name)}$", index, re.MULTILINE)
