"""Tables of rows: in the terminal, in Markdown, and as tidy CSV."""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from clipkal.report.aggregate import ID, MEAN_OOD, MEAN_TRANSFER, OVERALL, Estimate, H, Row


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its key in results.json, its title, the factor and decimals, and which end is good."""

    key: str
    title: str
    factor: float = 1.0
    decimals: int = 3
    higher_is_better: bool = False


METRICS = (
    Metric("accuracy", "Accuracy (%)", 100, 1, higher_is_better=True),
    Metric("nll", "NLL (nats)"),
    Metric("ece", "ECE (%)", 100, 1),
)
DETECTION = (
    Metric("auroc_msp", "Detection AUROC (%), score 1 − max p", 100, 1, higher_is_better=True),
    Metric("auroc_entropy", "Detection AUROC (%), score entropy", 100, 1, higher_is_better=True),
    Metric("auroc_mutual_information", "Detection AUROC (%), score mutual information", 100, 1, True),
)
HEAD = ("method", "predictive", "shots", "seeds")


@dataclass
class Table:
    """Text cells under a header; `best` are the (row, column) cells to emphasise; `breaks` the rows before which shots change."""

    title: str
    header: list[str]
    cells: list[list[str]] = field(default_factory=list)
    best: set[tuple[int, int]] = field(default_factory=set)
    breaks: set[int] = field(default_factory=set)


@dataclass
class Section:
    """The tables of one dataset and backbone: an overview, one per metric, and a line about the sets."""

    title: str
    note: str
    overview: Table
    tables: list[Table]


LEGEND = (
    "Mean ± 95 % confidence interval over seeds (Student t); one seed has no interval. Bold: best mean for "
    "the same number of shots. A method's reported predictive comes first; plugin is the softmax at the mean "
    "parameters, and _scaled has a temperature fitted on validation images. Transfer sets have classes of their "
    "own, of which nothing was learnt; H is the harmonic mean of the accuracies on base (ID) and new classes."
)


def sections(rows: Sequence[Row]) -> list[Section]:
    """For each dataset and backbone an overview, and one table per metric.

    Its columns: ID, each OOD set, mean OOD, each transfer set, mean transfer and H.
    """
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        families[row.dataset, row.backbone].append(row)
    found = []
    for (dataset, backbone), family in families.items():
        average = not any(row.facts for row in family)  # no single sets: the overview says it all
        tables = [build(family, metric) for metric in (() if average else METRICS) + DETECTION]
        tables = [table for table in tables if table.cells]
        found.append(Section(f"{dataset} · {backbone}", _note(family), overview(family), tables))
    return found


def build(rows: Sequence[Row], metric: Metric) -> Table:
    """One metric of rows that share dataset and backbone; rows and columns without any value are left out."""
    rows = [row for row in rows if any(key == metric.key for _, key in row.values)]
    if metric.key == "accuracy":  # a temperature does not change the argmax of a plug-in
        rows = [row for row in rows if row.predictive != "plugin_scaled"]
    names = [ID, *_group(rows, "ood", MEAN_OOD), *_group(rows, "transfer", MEAN_TRANSFER), H]
    columns = [name for name in names if any((name, metric.key) in row.values for row in rows)]
    return _filled(metric.title, rows, [(name, metric, name) for name in columns])


def _group(rows: Sequence[Row], role: str, mean: str) -> list[str]:
    """The sets of a role and their mean, which of one set says nothing more."""
    names = list(dict.fromkeys(name for row in rows for name in row.named(role)))
    return names if len(names) == 1 else [*names, mean]


def overview(rows: Sequence[Row]) -> Table:
    """Accuracy, NLL and ECE, each on ID, as the means over the OOD and the transfer sets, and on new classes."""
    short = {"accuracy": "Acc. %", "nll": "NLL", "ece": "ECE %"}
    columns = [
        (f"{short[m.key]} {name.removeprefix('mean ')}", m, name)
        for m in METRICS
        for name in OVERALL
        if any((name, m.key) in row.values for row in rows)
    ]
    return _filled("Overview (OOD: mean over the OOD sets)", rows, columns)


def _filled(title: str, rows: Sequence[Row], columns: Sequence[tuple[str, Metric, str]]) -> Table:
    """Cells of the columns (header, metric, set) for the rows, with breaks and the best cells."""
    table = Table(title, [*HEAD, *(header for header, _, _ in columns)])
    for index, row in enumerate(rows):
        if index and row.shots != rows[index - 1].shots:
            table.breaks.add(index)
        head = [row.label, row.predictive, row.shots, str(len(row.seeds))]
        table.cells.append(head + [shown(row.values.get((name, m.key)), m) for _, m, name in columns])
    for place, (_, metric, name) in enumerate(columns, len(HEAD)):
        table.best |= {(index, place) for index in _best(rows, name, metric)}
    return table


def _best(rows: Sequence[Row], name: str, metric: Metric) -> set[int]:
    """The rows with the best mean, as printed, among those of the same shots, where there are several."""
    best = set()
    for shots in {row.shots for row in rows}:
        indices = [i for i, row in enumerate(rows) if row.shots == shots]
        means = {i: _rounded(rows[i].values.get((name, metric.key)), metric) for i in indices}
        there = [m for m in means.values() if m is not None]
        if len(there) > 1:
            top = max(there) if metric.higher_is_better else min(there)
            best |= {i for i, mean in means.items() if mean == top}
    return best


def _rounded(estimate: Estimate | None, metric: Metric) -> float | None:
    return None if estimate is None else round(estimate.mean * metric.factor, metric.decimals)


def shown(estimate: Estimate | None, metric: Metric) -> str:
    """`71.3 ± 0.8`, `71.3` for one seed, `∞`, or `–` where there is none."""
    if estimate is None:
        return "–"
    if math.isinf(estimate.mean):
        return "∞"
    text = f"{estimate.mean * metric.factor:.{metric.decimals}f}"
    if estimate.half_width is None:
        return text
    return f"{text} ± {estimate.half_width * metric.factor:.{metric.decimals}f}"


def _note(rows: Sequence[Row]) -> str:
    """What the figures depend on: images and classes of each set, and the bins of the ECE."""
    facts: dict[str, set[tuple[object, object]]] = defaultdict(set)
    bins = set()
    for row in rows:
        for name, fact in row.facts.items():
            facts[name].add((fact["n"], fact["classes"]))
            bins.add(fact["bins"])
    sizes = ", ".join(
        f"{name} " + " or ".join(f"{n} / {c}" for n, c in sorted(pairs)) for name, pairs in facts.items()
    )
    if not sizes:
        return "Each seed's value is the mean over the datasets; rows that lack a dataset are left out."
    widths = " or ".join(map(str, sorted(bins)))
    return f"Images / classes: {sizes}. ECE over the full set with {widths} equal-width bins."


def markdown(parts: Iterable[Section]) -> str:
    """The whole report as GitHub Markdown."""
    lines = ["# clipkal report", "", LEGEND, ""]
    for section in parts:
        lines += (
            [f"## {_escaped(section.title)}", "", _escaped(section.note), ""]
            if section.note
            else [f"## {_escaped(section.title)}", ""]
        )
        for table in (section.overview, *section.tables):
            lines += [f"### {_escaped(table.title)}", "", *_markdown_table(table), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    rows = [
        [f"**{cell}**" if (r, c) in table.best else _escaped(cell) for c, cell in enumerate(cells)]
        for r, cells in enumerate(table.cells)
    ]
    header = [_escaped(name) for name in table.header]
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    rule = ["-" * w if c < 2 else "-" * (w - 1) + ":" for c, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                c.ljust(w) if i < 2 else c.rjust(w)
                for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            + " |"
        )

    return [line(header), line(rule), *map(line, rows)]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no cell ends, no HTML, no emphasis, link or formula begins in it."""
    return re.sub(r"[\\`*_{}\[\]<>|$~&]", r"\\\g<0>", text)


def rich_table(table: Table) -> RichTable:
    """For the terminal: the best cells are bold, a gap separates numbers of shots."""
    result = RichTable(box=SIMPLE_HEAD, header_style="", pad_edge=False)
    for index, name in enumerate(table.header):
        result.add_column(Text(name), justify="left" if index < 2 else "right", overflow="fold")
    for r, cells in enumerate(table.cells):
        texts = [
            Text(cell, style="bold green" if (r, c) in table.best else "") for c, cell in enumerate(cells)
        ]
        result.add_row(*texts, end_section=r + 1 in table.breaks)
    return result


CSV_HEADER = (
    *("dataset", "backbone", "method", "label", "predictive", "reported", "shots", "set", "metric"),
    *("mean", "ci95", "seeds", "seed_list"),
)


def csv_text(rows: Iterable[Row]) -> str:
    """Tidy CSV, one line per row, set and metric, unrounded and in the units of results.json; ci95 is a half-width."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows:
        words = map(_cell, (row.dataset, row.backbone, row.method, row.label, row.predictive))
        head = [*words, row.reported, _cell(row.shots)]
        seeds = _cell(" ".join(map(str, row.seeds)))
        for (name, metric), value in row.values.items():
            half = "" if value.half_width is None else value.half_width
            found = [value.mean, half, len(value.values), seeds]
            writer.writerow([*head, _cell(name), _cell(metric), *found])
    return file.getvalue()


def _cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula: behind an apostrophe where it begins like one."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
