"""The cookbook and the guides for newcomers: every block runs as pasted and described."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

GUIDES = Path(__file__).resolve().parent.parent / "docs" / "how-to"
PAGE = GUIDES / "cookbook.md"
LONGEST = 25  # lines that are not blank
FLAGS = re.MULTILINE | re.DOTALL
ENTRY = re.compile(r"^## (.+?)\n.*?^```python\n(.+?)^```", FLAGS)
BLOCKS = ENTRY.findall(PAGE.read_text(encoding="utf-8"))
OPTIONAL = {"Haiku": "haiku", "Keras": "keras"}
FAST = {"Flax Linen", "A population, by vmap", "Optimizer state in host memory"}
ENTRIES = [
    pytest.param(title, code, id=title, marks=[] if title in FAST else [pytest.mark.slow])
    for title, code in BLOCKS
]


def test_every_entry_has_one_short_block():
    titles = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [title for title, _ in BLOCKS] == titles
    assert set(titles) > FAST | set(OPTIONAL)
    lines = {title: len([line for line in code.splitlines() if line]) for title, code in BLOCKS}
    assert {title: count for title, count in lines.items() if count > LONGEST} == {}


@pytest.mark.parametrize(("title", "code"), ENTRIES)
def test_an_entry_runs_as_pasted(title, code, capsys):
    if title in OPTIONAL:
        pytest.importorskip(OPTIONAL[title])
    run(code)
    first, last = capsys.readouterr().out.splitlines()[-1].split(" -> ")
    assert float(last) < float(first)


@pytest.mark.parametrize("page", ["installation", "hyperparameters"])
def test_the_optimizer_of_each_block_in_a_guide_takes_a_step(page):
    blocks = re.findall(r"^```python\n(.+?)^```", (GUIDES / f"{page}.md").read_text(), FLAGS)
    assert blocks
    params = {
        "embed": {"embedding": jnp.ones((16, 8))},
        "hidden": {"kernel": jnp.eye(8, 16)},
        "head": {"kernel": jnp.ones((16, 4))},
    }
    for code in blocks:
        tx = run(code)["tx"]
        updates, _ = tx.update(params, tx.init(params), params)
        assert jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), updates))


def run(code):
    """Runs a block as a program, and returns its names."""
    names = {"__name__": "__main__"}
    # Blocks run with JAX's defaults, unlike other tests, and may enable float64.
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        try:
            exec(compile(code, "<block>", "exec"), names)
        finally:
            jax.config.update("jax_enable_x64", False)
    return names
