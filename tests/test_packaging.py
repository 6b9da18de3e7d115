"""What is published: one version and one owner everywhere, and links that work on PyPI."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def test_the_citation_names_the_version_the_licence_and_the_owner_of_the_package():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["authors"] == PROJECT["authors"]


def test_every_link_of_the_readme_is_absolute_on_pypi_and_leads_to_the_owner():
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    (part,) = hook["substitutions"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", re.sub(part["pattern"], part["replacement"], readme))
    here = f"{PROJECT['urls']['Repository']}/blob/v$HFPR_VERSION/"
    assert f"{here}CONTRIBUTING.md" in links
    assert [link for link in links if not link.startswith(("https://", here))] == []
    assert all(url.startswith(PROJECT["urls"]["Repository"]) for url in PROJECT["urls"].values())


def test_pre_commit_has_the_ruff_of_the_development_tools():
    repositories = {
        each["repo"]: each["rev"] for each in read(ROOT / ".pre-commit-config.yaml")["repos"]
    }
    revision = repositories["https://github.com/astral-sh/ruff-pre-commit"]
    assert f"ruff=={revision.removeprefix('v')}" in PYPROJECT["dependency-groups"]["dev"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_runs_targets_that_the_makefile_has(workflow):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert targets
    steps = [step for job in read(workflow)["jobs"].values() for step in job["steps"]]
    made = re.findall(r"\bmake ([\w-]+)", "\n".join(step.get("run", "") for step in steps))
    assert made
    assert set(made) <= set(targets[1].split())


@pytest.mark.parametrize("form", FORMS, ids=lambda file: file.stem)
def test_an_issue_form_has_what_github_requires(form):
    content = read(form)
    assert {"name", "description", "body"} <= content.keys()
    identifiers = [field["id"] for field in content["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(field["attributes"]["label"] for field in content["body"])
