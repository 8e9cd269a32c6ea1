"""The report as GitHub Markdown."""

import re
from collections.abc import Iterable, Sequence

from clipkal.report.table import LEGEND, Section, Table


def markdown(parts: Iterable[Section]) -> str:
    """The report without the further metrics, of which the page and the CSV have all."""
    lines = ["# clipkal report", "", LEGEND, ""]
    for section in parts:
        lines += [f"## {_escaped(section.title)}", "", _escaped(section.note), ""]
        lines += [f"**Note:** {_escaped(flag)}\n" for flag in section.flags]
        for table in section.usual():
            lines += [f"### {_escaped(table.title)}", ""]
            lines += [_escaped(table.note), ""] if table.note else []
            lines += [*_table(table), ""]
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    rows = [
        [f"**{_escaped(cell)}**" if (r, c) in table.best else _escaped(cell) for c, cell in enumerate(cells)]
        for r, cells in enumerate(table.cells)
    ]
    header = [_escaped(name) for name in table.header]
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    rule = ["-" * w if c < 2 else "-" * (w - 1) + ":" for c, w in enumerate(widths)]
    return ["| " + " | ".join(_padded(row, widths)) + " |" for row in (header, rule, *rows)]


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no cell ends, no HTML, no emphasis, link or formula begins in it."""
    return re.sub(r"[\\`*_{}\[\]<>|$~&]", r"\\\g<0>", text)
