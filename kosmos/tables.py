"""Tables for terminals of any width: where the columns have no room, a row becomes lines of ``heading  value``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


def show(console: Console, table: Table) -> None:
    """Print a table, or its rows one below the other where cells would be cut off."""
    console.print(fitting(console, table))


def fitting(console: Console, table: Table) -> RenderableType:
    """Return ``table`` if the console is wide enough for it, else its rows as lines."""
    from rich.console import Group
    from rich.measure import Measurement
    from rich.text import Text

    needed = Measurement.get(console, console.options.update(max_width=10_000), table).minimum
    if needed <= console.width:
        return table
    headings = [Text.from_markup(str(column.header), emoji=False).plain for column in table.columns]
    columns = [
        (heading.replace("\n", " ").strip(), list(column.cells))
        for heading, column in zip(headings, table.columns, strict=True)
    ]
    lines: list[RenderableType] = []
    for row in range(table.row_count):
        for number, (heading, cells) in enumerate(columns):
            cell = cells[row]
            shown = Text.from_markup(cell, emoji=False) if isinstance(cell, str) else Text(str(cell))
            shown.rstrip()
            if number == 0 and shown.plain:
                lines.append(shown)
            elif shown.plain.strip():
                lines.append(Text(f"  {heading}  ").append_text(Text(shown.plain.strip())))
    return Group(*lines)
