"""The page on sharding: its blocks print the text shown, and its statements are true."""

import re

import pytest
from processes import ROOT, measured_by

PAGE = (ROOT / "docs" / "how-to" / "sharding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n.*?```(?:\n\n```text\n(.*?)```)?", PAGE, re.S)
"""What the page says that each block prints."""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    return measured_by("sharding_page")


def test_every_block_prints_what_the_page_says(found):
    assert found["outputs"] == BLOCKS


@pytest.mark.parametrize("way", ["auto", "given", "explicit"])
def test_an_update_can_be_exported_differentiated_and_cached(found, way):
    expected = {"export": "it works", "derivative": "it works", "cached": True}
    assert found["claims"][way] == expected


def test_skip_nonfinite_keeps_collectives_out_of_conditionals(found):
    assert found["claims"]["apply_if_finite"] == 4
    assert found["claims"]["skip_nonfinite"] == 0
