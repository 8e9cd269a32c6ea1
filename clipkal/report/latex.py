"""The headline tables for a paper: LaTeX with booktabs."""

import re
from collections.abc import Iterable, Sequence

from clipkal.report.table import LEGEND, Section, Table

OPENING = """% Written by clipkal-report. In the preamble: \\usepackage{booktabs}, and \\usepackage{graphicx} for \\resizebox.
% The lines are those of table.md; delete those that the paper does not need.
"""
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_"},
    "±": r"$\pm$", "∞": r"$\infty$", "−": r"$-$", "–": "--", "·": r"$\cdot$", "<": r"$<$", ">": r"$>$",
    "’": "'", "…": r"\dots{}",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL)))


def latex(parts: Iterable[Section]) -> str:
    """A table for each section's overview, and one for its differences to the baseline."""
    return "\n".join([OPENING, *(_table(section, table) for section in parts for table in section.main())])


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return _SPECIAL.sub(lambda found: SPECIAL[found[0]], text)


def _table(section: Section, table: Table) -> str:
    columns = "ll" + "r" * (len(table.header) - 2)
    caption = f"{section.title}: {table.title}. {table.note or LEGEND}"
    lines = [
        r"\begin{table}",
        rf"\caption{{{escaped(caption)}}}",
        r"\centering\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line(map(escaped, table.header)),
        r"\midrule",
    ]
    for index, cells in enumerate(table.cells):
        lines += [r"\midrule"] if index in table.breaks else []
        lines.append(_line(_cells(table, index, cells)))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def _cells(table: Table, row: int, cells: Sequence[str]) -> list[str]:
    return [_cell(table, (row, column), escaped(cell)) for column, cell in enumerate(cells)]


def _cell(table: Table, place: tuple[int, int], text: str) -> str:
    text = rf"\underline{{{text}}}" if place in table.top else text
    return rf"\textbf{{{text}}}" if place in table.best else text


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
