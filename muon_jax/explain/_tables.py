"""Tables of strings: aligned text for terminals, HTML for notebooks, and rich's where it is."""

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any, cast

try:
    import rich.table as rich_table
    import rich.text as rich_text
except ImportError:  # then nobody asks for `__rich_console__` either
    rich_table = rich_text = cast(Any, None)

Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of text, and lines below them.

    Attributes:
      header: the names of the columns; one that starts with `>` is aligned to the right.
      rows: one string a column each.
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
        lines = [self.names, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.to_right, strict=True)
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:], rule, *self.notes])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Draws as many columns as fit, since folded ones cannot be read."""
        lines = [self.names, *self.rows]
        widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
        fits = [sum(widths[: column + 1]) <= options.max_width for column in range(len(widths))]
        count = max(1, sum(fits))
        table = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name, right in list(zip(self.names, self.to_right, strict=True))[:count]:
            table.add_column(name, justify="right" if right else "left")
        for row in self.rows:
            table.add_row(*map(rich_text.Text, row[:count]))
        yield table
        if count < len(widths):
            yield f"A wider terminal also shows: {', '.join(self.names[count:])}"
        yield from map(rich_text.Text, self.notes)

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
