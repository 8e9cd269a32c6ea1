"""Which figures a report has, by section and caption."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from clipkal.report.aggregate import ID, MEAN_OOD, Row, over_datasets
from clipkal.report.collect import Run
from clipkal.report.figures import calibration_bars, id_against_ood, learning_curves
from clipkal.report.reliability import MARKS, reliability_grid

MOST_PANELS = 6
"""Rows of the reliability figure; beyond that a page of dots says nothing."""


def draw(rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, dict[str, Figure]]:
    """{section title: {caption: figure}}, with the section titles of `table.sections`."""
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in [*over_datasets(rows), *rows]:
        families[row.dataset, row.backbone].append(row)
    return {f"{d} · {b}": _family(family, runs) for (d, b), family in families.items()}


def _family(rows: list[Row], runs: Sequence[Run]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if _has(rows, ID):
        figures["Accuracy against shots"] = learning_curves(rows)
    if _has(rows, ID) and _has(rows, MEAN_OOD):
        figures["In against out of distribution"] = id_against_ood(rows)
    figures["Calibration"] = calibration_bars(rows)
    panels = _panels(rows, runs)
    if panels:
        figures["Reliability, one seed"] = reliability_grid(panels)
    return figures


def _has(rows: Sequence[Row], name: str) -> bool:
    return any((name, "accuracy") in row.values for row in rows)


def _panels(rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The reported predictive of each method at its most shots, first seed: {row: {set: metrics}}."""
    last = {row.label: row for row in rows if row.reported}  # rows come by growing shots
    panels: dict[str, dict[str, Any]] = {}
    by_id = {run.run_id: run for run in runs}
    for label, row in sorted(last.items())[:MOST_PANELS]:
        run = by_id.get(row.run_ids[0]) if row.run_ids else None
        if run is not None:
            name = f"{label}\n{row.shots} shots"
            panels[name] = {
                key + MARKS.get(one["role"], ""): one["predictive"][row.predictive]
                for key, one in run.sets.items()
                if one["predictive"].get(row.predictive, {}).get("reliability")
            }
    return {name: row for name, row in panels.items() if row}
