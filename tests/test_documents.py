"""The pages: the reference has every public name, links resolve, examples run."""

import doctest
import re
from pathlib import Path

import pytest

import muon_jax
from muon_jax import attention, diagnostics, migrate, recipes

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(file for file in ROOT.glob("*.md")),
    *(file for file in (ROOT / "docs").rglob("*.md") if "_build" not in file.parts),
]
SOURCES = [*PAGES, *(ROOT / "notebooks").glob("*.py")]
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")


def named(file):
    return str(file.relative_to(ROOT))


def test_every_public_name_stands_once_in_the_reference():
    public = [
        f"{module.__name__}.{name}"
        for module in (muon_jax, attention, diagnostics, migrate, recipes)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith("muon_jax.")
        and name in getattr(module, "__all__", [name])
    ]
    reference = "\n".join(
        page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    )
    documented = re.findall(r"^\.\. auto\w+:: (\S+)$", reference, re.MULTILINE)
    assert sorted(documented) == sorted(public)


def test_every_module_stands_beside_its_package_in_the_architecture():
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    table = re.split(r"^## ", page, flags=re.MULTILINE)
    (packages,) = (section for section in table if section.startswith("Packages\n"))
    listed, package = set(), ""
    for line in packages.splitlines():
        if found := re.match(r"\| (`\w+`|–|) +\| (.*?) \|", line):
            package = found[1].strip("`") or package
            listed |= {(package, module) for module in re.findall(r"`(\w+)`", found[2])}
    files = [file for file in (ROOT / "muon_jax").rglob("_*.py") if file.stem != "__init__"]
    folders = {file: file.parent.name.replace("muon_jax", "–") for file in files}
    assert listed == {(folders[file], file.stem) for file in files}


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
