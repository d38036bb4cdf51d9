"""Tables: padded columns for a terminal, and Markdown.

Rich is imported where a table is drawn, so that ``edgeverify --help`` need not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Row = Sequence[str]


def padded(rows: Sequence[Row], right: Container[int] = (), indent: str = "") -> list[str]:
    """Rows as lines of text, two spaces between the columns; no cell is wrapped or cut.

    Args:
        rows: of equally many cells; the first may be the head.
        right: indices of the columns that end, not begin, at the same place.
        indent: put before each line.
    """
    from rich.cells import cell_len  # 15 ms; rich.table takes 100

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        blanks = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [
            blank + cell if index in right else cell + blank
            for index, (cell, blank) in enumerate(zip(row, blanks, strict=True))
        ]
        lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return lines


def titled(
    title: str,
    columns: Row,
    right: Container[int] = (),
    *,
    whole: Container[int] = (),
) -> Table:
    """An empty table without any rule; a cell that does not fit into a terminal is folded.

    Args:
        title: the line above it.
        columns: their heads.
        right: indices of the columns that end at the same place.
        whole: indices of the columns whose cells are never folded.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if index in right else "left",
            overflow="fold",
            no_wrap=index in whole,
        )
    return table


def piped(rows: Sequence[Row], right: Container[int] = ()) -> list[str]:
    """Rows as the lines of a Markdown table, the first as its head.

    Args:
        rows: cells in Markdown: what is not the project's own text goes through ``escaped``.
        right: indices of the columns that are aligned right.
    """
    head, *body = (f"| {' | '.join(map(_within, row))} |" for row in rows)
    rule = "".join("---:|" if index in right else "---|" for index in range(len(rows[0])))
    return [head, f"|{rule}", *body]


def escaped(text: object) -> str:
    """Text that Markdown shows as it is: one line that is no markup, HTML or end of a cell."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|&" else c for c in " ".join(str(text).split()))


def code(text: object) -> str:
    """Text as code in one line."""
    plain = " ".join(str(text).split()).replace("`", "'")
    return f"`{plain}`"


def _within(cell: str) -> str:
    """A cell that a ``|`` does not end, also where it is code."""
    return re.sub(r"(?<!\\)\|", r"\|", cell)
