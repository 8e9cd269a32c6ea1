"""Tables in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from clipkal.report.table import Table


def rich_table(table: Table) -> RichTable:
    """The table with its best cells in bold, the best mean underlined, and a gap between numbers of shots."""
    result = RichTable(box=SIMPLE_HEAD, header_style="", pad_edge=False)
    for index, name in enumerate(table.header):
        result.add_column(Text(name), justify="left" if index < 2 else "right", overflow="fold")
    for r, cells in enumerate(table.cells):
        texts = [Text(cell, style=_style(table, r, c)) for c, cell in enumerate(cells)]
        result.add_row(*texts, end_section=r + 1 in table.breaks)
    return result


def _style(table: Table, row: int, column: int) -> str:
    if (row, column) in table.best:
        return "bold green" + " underline" * ((row, column) in table.top)
    return "red" if (row, column) in table.worse else ""
