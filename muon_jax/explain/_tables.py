"""Tables of strings: aligned text for terminals of any width, and HTML for notebooks."""

import dataclasses
import html
import itertools
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

Row = tuple[str, ...]

_GAP = "  "
_LEAST = 20  # narrower terminals get lines of this width


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of text, and lines below them.

    Attributes:
      header: the names of the columns; names that start with `>` align right.
      rows: one string for each column.
      notes: lines of text below the table.
    """

    header: Row
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def names(self) -> Row:
        return tuple(name.removeprefix(">") for name in self.header)

    @property
    def to_right(self) -> tuple[bool, ...]:
        return tuple(name.startswith(">") for name in self.header)

    def __str__(self) -> str:
        """Returns aligned text, wrapped to the terminal if stdout is one."""
        terminal = sys.stdout is not None and sys.stdout.isatty()
        return self.text(shutil.get_terminal_size().columns if terminal else None)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield console.render_str(self.text(options.max_width), markup=False, highlight=False)

    def text(self, width: int | None = None) -> str:
        """Returns aligned text of at most `width` characters a line.

        Columns that do not fit follow below, with the first column repeated.
        """
        longest = max(_LEAST, width or sys.maxsize)
        lines = [self.names, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for column in range(len(widths)):
            beside = widths[0] + len(_GAP) if column else longest // 2 * (len(widths) > 1)
            widths[column] = min(widths[column], longest - beside)
        blocks = [
            self._drawn(line, columns, widths)
            for columns in _bands(widths, longest)
            for line in ([self.names], self.rows)
        ]
        rule = "-" * max([len(line) for block in blocks for line in block], default=0)
        folded = [part for note in self.notes for part in _folded(note, longest)]
        return "\n".join([*(part for block in blocks for part in (*block, rule)), *folded])

    def _drawn(
        self, lines: Sequence[Row], columns: Sequence[int], widths: Sequence[int]
    ) -> list[str]:
        """Formats some columns of some lines."""
        drawn = list[str]()
        for line in lines:
            cells = [_folded(line[column], widths[column]) for column in columns]
            for parts in itertools.zip_longest(*cells, fillvalue=""):
                padded = [
                    part.rjust(widths[column])
                    if self.to_right[column]
                    else part.ljust(widths[column])
                    for part, column in zip(parts, columns, strict=True)
                ]
                drawn.append(_GAP.join(padded).rstrip())
        return drawn

    def _repr_html_(self) -> str:
        sides = ["right" if right else "left" for right in self.to_right]

        def line(cells: Row, tag: str) -> str:
            marked = (
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{''.join(marked)}</tr>"

        rows = "".join(line(row, "td") for row in self.rows)
        notes = "<br>".join(map(html.escape, self.notes))
        return f"<table>{line(self.names, 'th')}{rows}</table><p>{notes}</p>"


def _bands(widths: Sequence[int], longest: int) -> list[list[int]]:
    """Groups columns so that each group fits a line; every group has the first column."""
    if not widths:
        return []
    bands, taken = [[0]], widths[0]
    for column, width in enumerate(widths[1:], 1):
        taken += len(_GAP) + width
        if taken > longest:
            bands.append([0])
            taken = widths[0] + len(_GAP) + width
        bands[-1].append(column)
    return bands


def _folded(text: str, width: int) -> list[str]:
    """Breaks text at spaces and after slashes, and long words anywhere."""
    lines = [""]
    for piece in re.findall(r"[^/\s]*/|[^/\s]+|\s+", text) if len(text) > width else [text]:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
            piece = piece.lstrip()
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]
