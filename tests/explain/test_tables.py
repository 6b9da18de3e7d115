"""A table reads alike as text, in a terminal of any width and in a notebook."""

import io

import pytest
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


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            25,
            [
                "name     size  why",
                "up        1 k  a matrix",
                "<scale>  12 k",
                "13 k & more",
                "",
                "[last]",
            ],
        ),
        (
            24,
            [
                "name     size",
                "up        1 k",
                "<scale>  12 k",
                "A wider terminal also",
                "shows: why",
                "13 k & more",
                "",
                "[last]",
            ],
        ),
        (
            14,
            [
                "name",
                "up",
                "<scale>",
                "A wider",
                "terminal also",
                "shows: size,",
                "why",
                "13 k & more",
                "",
                "[last]",
            ],
        ),
    ],
)
def test_a_terminal_gets_the_columns_that_fit(width, expected):
    assert drawn(width) == expected


def test_a_narrow_terminal_gets_one_column():
    assert drawn(8)[:3] == ["name", "up", "<scale>"]


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
