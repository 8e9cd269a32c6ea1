"""One HTML page with tables and figures in it, and no request to anywhere, so it can be mailed or archived.

Its style and its small script stand beside this file (page.css, page.js). Without the script the page shows every row;
with it tables can be sorted and filtered, and rows with a fitted temperature are folded away until they are asked for.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from matplotlib.figure import Figure
from PIL import Image

from clipkal.report.aggregate import shots_rank
from clipkal.report.table import HEAD, LEGEND, Section, Table
from clipkal.tracking.writing import render

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser lets the page do: nothing but what is in it."""


@dataclass(frozen=True)
class Picture:
    """A figure as PNG, and the width to show it at, in CSS pixels."""

    png: bytes
    width: int


def page(
    summary: str,
    about: Mapping[str, str],
    parts: Sequence[Section],
    pictures: Mapping[str, Mapping[str, Picture]],
) -> str:
    """The page: what was read, then for each section its figures and its tables.

    Args:
        summary: one line on what the report holds.
        about: what stands in the header below it: version, command, date, settings.
        parts: the sections, in order.
        pictures: section title -> {caption: picture}.
    """
    body = [f"<h1>clipkal report</h1><p>{html.escape(summary)}</p>", _facts(about)]
    body.append(f"<p>{html.escape(LEGEND)}</p>")
    body += [_contents(parts)] if len(parts) > 1 else []
    body.append(_tools(parts))
    for index, section in enumerate(parts):
        body.append(f'<h2 id="{_anchor(index)}">{html.escape(section.title)}</h2>')
        body += _section(section, pictures.get(section.title, {}), opened=len(parts) == 1)
    beside = files("clipkal.report")
    style, script = (beside.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head += f"<title>clipkal report</title><style>{style}</style>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n'
        + "\n".join(body)
        + f"\n<script>{script}</script>\n</body></html>\n"
    )


def picture(figure: Figure) -> Picture:
    """The figure as PNG, 150 dots an inch, in 256 colours: a third of the bytes, and nothing that the eye misses."""
    drawn, small = io.BytesIO(), io.BytesIO()
    render(figure, drawn, dpi=150)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG")
    return Picture(small.getvalue(), round(100 * figure.get_figwidth()))


def _facts(about: Mapping[str, str]) -> str:
    lines = (f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in about.items())
    return f"<dl>{''.join(lines)}</dl>"


def _contents(parts: Sequence[Section]) -> str:
    links = (f'<a href="#{_anchor(index)}">{html.escape(s.title)}</a>' for index, s in enumerate(parts))
    return f"<nav>{''.join(links)}</nav>"


def _tools(parts: Sequence[Section]) -> str:
    """The filters, which the script shows; they work on all tables at once."""
    tables = [table for section in parts for table in (*section.usual(), *section.others)]
    shots = sorted({cells[2] for table in tables for cells in table.cells}, key=lambda s: (shots_rank(s), s))
    options = "".join(f"<option>{html.escape(one)}</option>" for one in shots)
    folded = any(table.folded for table in tables)
    fold = '<label><input type="checkbox"> temperature-scaled rows</label>' if folded else ""
    return (
        '<div id="tools" hidden><input type="search" placeholder="filter methods" aria-label="filter methods">'
        f'<label>shots <select><option value="">all</option>{options}</select></label>{fold}</div>'
    )


def _section(section: Section, pictures: Mapping[str, Picture], opened: bool) -> list[str]:
    flags = [f'<p class="flag">{html.escape(flag)}</p>' for flag in section.flags]
    more = {"Every set": section.tables, "Further metrics": section.others}
    more["Cost"] = [section.cost] if section.cost else []
    return [
        f"<p>{html.escape(section.note)}</p>",
        *flags,
        *map(_table, section.main()),
        *(_picture(caption, one) for caption, one in pictures.items()),
        *(
            _details(title, tables, opened and title == "Every set")
            for title, tables in more.items()
            if tables
        ),
    ]


def _details(title: str, tables: Iterable[Table], opened: bool) -> str:
    return f"<details{' open' * opened}><summary>{title}</summary>{''.join(map(_table, tables))}</details>"


def _picture(caption: str, one: Picture) -> str:
    data = base64.b64encode(one.png).decode("ascii")
    text = html.escape(caption, quote=True)
    image = f'<img alt="{text}" width="{one.width}" src="data:image/png;base64,{data}">'
    return f'<h3>{text}</h3><div class="wide">{image}</div>'


def _table(table: Table) -> str:
    header = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.header)
    rows = "\n".join(_row(table, index, cells) for index, cells in enumerate(table.cells))
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f'<h3>{html.escape(table.title)}</h3>{note}<div class="wide"><table><thead><tr>{header}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>{_fold_note(table)}"
    )


def _fold_note(table: Table) -> str:
    """What is not seen while the rows with a fitted temperature are folded away; the script shows it then."""
    best = sum(row in table.folded for row, _ in table.top)
    count = len(table.folded)
    text = f"{count} temperature-scaled row{'s' * (count != 1)} folded away, with {best or 'none'} of the best means."
    return f'<p class="fold" hidden>{text}</p>' if table.folded else ""


def _row(table: Table, index: int, cells: Iterable[str]) -> str:
    marks = {"first": index in table.breaks, "folded": index in table.folded}
    texts = "".join(_cell(table, index, column, cell) for column, cell in enumerate(cells))
    return f"<tr{_class(marks)}>{texts}</tr>"


def _cell(table: Table, row: int, column: int, text: str) -> str:
    place = (row, column)
    marks = {"best": place in table.best, "top": place in table.top, "worse": place in table.worse}
    first, bracket, rest = text.partition(" (") if column >= len(HEAD) else (text, "", "")
    more = f" <small>({html.escape(rest)}</small>" if bracket else ""
    return f"<td{_class(marks)}>{html.escape(first)}{more}</td>"


def _class(marks: Mapping[str, bool]) -> str:
    names = " ".join(name for name, set_ in marks.items() if set_)
    return f' class="{names}"' if names else ""


def _anchor(index: int) -> str:
    return f"section-{index + 1}"
