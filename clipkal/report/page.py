"""One HTML page with tables and figures in it: no script, no request to anywhere, so it can be mailed or archived."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from clipkal.report.table import LEGEND, Section, Table
from clipkal.tracking.writing import render

STYLE = """
:root { color-scheme: light; --ink: #1f2430; --muted: #5b6472; --rule: #e3e6ec; --best: #e8f1f8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; padding-top: 1.5rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 60rem; color: var(--muted); }
nav a { margin-right: 1rem; } a { color: #0060a0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--muted); border-bottom: 2px solid var(--rule); }
th, td { padding: .3rem .75rem; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; padding-left: 0; }
td { text-align: right; border-bottom: 1px solid var(--rule); }
tr.first td { border-top: 2px solid #c5cbd6; }
td.best { font-weight: 650; background: var(--best); }
summary { cursor: pointer; font-weight: 600; margin-top: 1.5rem; }
img { max-width: 100%; height: auto; display: block; margin: .5rem 0 1rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, and the width to show it at, in CSS pixels."""

    png: bytes
    width: int


def page(summary: str, parts: Sequence[Section], pictures: Mapping[str, Mapping[str, Picture]]) -> str:
    """The page: what was read, then for each section its figures and its tables.

    Args:
        summary: one line on what the report holds.
        parts: the sections, in order.
        pictures: section title -> {caption: picture}.
    """
    links = "".join(f'<a href="#{_anchor(s.title)}">{html.escape(s.title)}</a>' for s in parts)
    body = [f"<h1>clipkal report</h1><p>{html.escape(summary)}</p><p>{html.escape(LEGEND)}</p>"]
    body += [f"<nav>{links}</nav>"] if len(parts) > 1 else []
    for section in parts:
        body.append(f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>')
        body.append(f"<p>{html.escape(section.note)}</p>")
        body.append(_table(section.overview))
        body += [_picture(caption, one) for caption, one in pictures.get(section.title, {}).items()]
        tables = "".join(_table(table) for table in section.tables)
        body.append(f"<details{' open' * (len(parts) == 1)}><summary>Every set</summary>{tables}</details>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>clipkal report</title><style>{STYLE}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def picture(figure: Figure) -> Picture:
    """The figure as PNG, 150 dots an inch."""
    buffer = io.BytesIO()
    render(figure, buffer, dpi=150, metadata={"Software": None})
    return Picture(buffer.getvalue(), round(100 * figure.get_figwidth()))


def _picture(caption: str, one: Picture) -> str:
    data = base64.b64encode(one.png).decode("ascii")
    text = html.escape(caption, quote=True)
    return f'<h3>{text}</h3><img alt="{text}" width="{one.width}" src="data:image/png;base64,{data}">'


def _table(table: Table) -> str:
    header = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = "\n".join(_row(table, index, cells) for index, cells in enumerate(table.cells))
    return (
        f'<h3>{html.escape(table.title)}</h3><div class="wide"><table><tr>{header}</tr>\n{rows}</table></div>'
    )


def _row(table: Table, index: int, cells: Iterable[str]) -> str:
    texts = [
        f'<td class="best">{html.escape(cell)}</td>'
        if (index, c) in table.best
        else f"<td>{html.escape(cell)}</td>"
        for c, cell in enumerate(cells)
    ]
    return f"<tr{' class=first' if index in table.breaks else ''}>" + "".join(texts) + "</tr>"


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())
