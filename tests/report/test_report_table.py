"""What is printed: rounding, bold, missing values, Markdown that a parser accepts, CSV that pandas reads."""

import io
import math
from pathlib import Path

import pandas as pd
import pytest

from clipkal.report.aggregate import ID, Estimate, aggregate
from clipkal.report.averages import over_datasets
from clipkal.report.collect import collect
from clipkal.report.markdown import markdown
from clipkal.report.metric import METRICS
from clipkal.report.section import sections
from clipkal.report.table import (
    HEAD,
    Section,
    build,
    shown,
)
from clipkal.report.terminal import rich_table
from clipkal.report.tidy import means_csv


@pytest.fixture(scope="module")
def rows(outputs: Path):
    return aggregate(collect([outputs]).runs)


@pytest.fixture(scope="module")
def parts(rows) -> list[Section]:
    return sections([*over_datasets(rows), *rows])


def test_shown() -> None:
    accuracy, nll, _ = METRICS
    assert shown(Estimate(0.71349, 0.0081, ()), accuracy) == "71.3 ± 0.8"
    assert shown(Estimate(0.71349, None, ()), accuracy) == "71.3"
    assert shown(Estimate(math.inf, None, ()), nll) == "∞"
    assert shown(None, nll) == "–"


def test_sections_and_columns(parts: list[Section]) -> None:
    titles = [section.title for section in parts]
    assert titles == ["average of 2 datasets · mini", "digits · mini", "shapes · mini"]
    digits = parts[1]
    assert [table.title for table in digits.tables][:3] == ["Accuracy (%)", "NLL (nats)", "ECE (%)"]
    assert digits.tables[0].header == [*HEAD, "ID", "sketch", "photo", "mean OOD"]
    assert parts[2].tables[0].header == [*HEAD, "ID", "sketch"]  # one OOD set needs no mean
    assert digits.overview.header[4:] == [
        *("Acc. % ID", "Acc. % OOD", "NLL ID", "NLL OOD", "ECE % ID", "ECE % OOD"),
    ]
    assert "ID 60 / 6" in digits.note and "15 equal-width bins" in digits.note
    assert all(
        len(cells) == len(t.header) for s in parts for t in (s.overview, *s.tables) for cells in t.cells
    )


def test_scaling_is_left_out_of_the_accuracy_table_only(parts: list[Section]) -> None:
    accuracy, nll = ({cells[1] for cells in table.cells} for table in parts[1].tables[:2])
    assert "plugin_scaled" not in accuracy and "plugin_scaled" in nll


def test_the_best_mean_is_marked_per_column_and_shots(rows) -> None:
    digits = [row for row in rows if row.dataset == "digits"]
    for metric in METRICS:
        table = build(digits, metric)
        column = table.header.index("ID")
        for shots in ("1", "16"):
            lines = [i for i, cells in enumerate(table.cells) if cells[2] == shots]
            numbers = {i: float(table.cells[i][column].split()[0]) for i in lines}
            top = (max if metric.higher_is_better else min)(numbers.values())
            best = {i for i in lines if (i, column) in table.best}
            marked = {i for i in lines if (i, column) in table.top}
            assert len(marked) == 1 and {numbers[i] for i in marked} == {top}
            assert {i for i in lines if numbers[i] == top} <= best


def test_markdown_is_a_table_with_escapes(parts: list[Section]) -> None:
    lines = markdown(parts).splitlines()
    assert "## digits · mini" in lines
    tables = [line for line in lines if line.startswith("|")]
    header = next(line for line in tables if "sketch" in line)
    assert header.count("|") == len([*HEAD, "ID", "sketch", "photo", "mean OOD"]) + 1
    assert all(line.startswith("| ") and line.endswith(" |") for line in tables)
    assert "plugin\\_scaled" in "\n".join(tables) and "**" in "\n".join(tables)


def test_csv_has_every_number(rows) -> None:
    frame = pd.read_csv(io.StringIO(means_csv(rows)))
    row = next(
        r
        for r in rows
        if (r.dataset, r.label, r.predictive, r.shots) == ("digits", "kalman", "sampled", "16")
    )
    line = frame[
        (frame.dataset == "digits") & (frame.label == "kalman") & (frame.predictive == "sampled")
        & (frame.shots.astype(str) == "16") & (frame.set == ID) & (frame.metric == "nll")
    ]  # fmt: skip
    assert len(line) == 1
    assert line["mean"].item() == pytest.approx(row.values[ID, "nll"].mean)
    assert line["ci95"].item() == pytest.approx(row.values[ID, "nll"].half_width)
    assert line["seeds"].item() == 3 and line["seed_list"].item() == "1 2 3"
    assert {"epistemic", "brier", "aurc", "auroc_msp", "fpr95_entropy"} <= set(frame.metric)


def test_rich_table_has_every_cell(parts: list[Section]) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(rich_table(parts[1].overview))
    text = console.export_text()
    assert all(cell in text for cells in parts[1].overview.cells for cell in cells)
