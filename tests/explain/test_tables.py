"""A table has the same cells as text, in a terminal of any width, and in a notebook."""

import io

import rich.console

from muon_jax.explain._tables import Table

TABLE = Table(
    header=("name", ">size", "why"),
    rows=[("up", "1 k", "a matrix"), ("<scale>", "12 k", "")],
    notes=["13 k & more", "", "[last]"],
)


def test_text_is_aligned_and_ruled():
    assert str(TABLE).splitlines() == [
        "name     size  why",
        "-----------------------",
        "up        1 k  a matrix",
        "<scale>  12 k",
        "-----------------------",
        "13 k & more",
        "",
        "[last]",
    ]


FOLDED = """\
name     size
-----------------
up        1 k
<scale>  12 k
-----------------
name     why
-----------------
up       a matrix
<scale>
-----------------
13 k & more

[last]""".splitlines()


def test_columns_that_do_not_fit_follow_beside_the_first():
    assert drawn(23)[0] == "name     size  why"
    assert drawn(22) == FOLDED
    assert TABLE.text(5) == TABLE.text(20)  # narrower terminals get lines of 20


def test_long_cells_break_behind_slashes_and_long_notes_at_spaces():
    table = Table(
        ("path", "rule"), [("blocks/attention/query/kernel", "matrix")], ["a b " * 7 + "a b"]
    )
    assert table.text(30).splitlines() == [
        "path             rule",
        "-----------------------",
        "blocks/          matrix",
        "attention/",
        "query/kernel",
        "-----------------------",
        "a b a b a b a b a b a b a b a",
        "b",
    ]


def drawn(width):
    out = io.StringIO()
    rich.console.Console(file=out, width=width).print(TABLE)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_notebook_gets_html():
    assert TABLE._repr_html_() == (
        "<table>"
        '<tr><th style="text-align:left">name</th><th style="text-align:right">size</th>'
        '<th style="text-align:left">why</th></tr>'
        '<tr><td style="text-align:left">up</td><td style="text-align:right">1 k</td>'
        '<td style="text-align:left">a matrix</td></tr>'
        '<tr><td style="text-align:left">&lt;scale&gt;</td><td style="text-align:right">12 k</td>'
        '<td style="text-align:left"></td></tr>'
        "</table><p>13 k &amp; more<br><br>[last]</p>"
    )
