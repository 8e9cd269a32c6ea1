"""Which figures a report has, by section and caption."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from clipkal.report.aggregate import Row
from clipkal.report.bars import calibration_bars
from clipkal.report.collect import Run
from clipkal.report.figures import over_shots
from clipkal.report.metric import METRICS
from clipkal.report.passes import learning_figures
from clipkal.report.rank_view import rank_figure
from clipkal.report.reliability import MARKS, reliability_grid
from clipkal.report.risk import risk_figure
from clipkal.report.scatter import cost_against_quality, id_against_ood
from clipkal.report.table import families, title_of
from clipkal.report.values import COST, ID, MEAN_OOD

MOST_PANELS = 6
"""Rows and columns of the reliability figure; beyond that a page of dots says nothing."""

Problem = Callable[[str], None]


def draw(rows: Sequence[Row], runs: Sequence[Run], problem: Problem = print) -> dict[str, dict[str, Figure]]:
    """{section title: {caption: figure}}, with the section titles of `sections`.

    `problem` is told, in a line each, of files of runs that cannot be read; figures are drawn without them.
    """
    return {title_of(family): _family(family, runs, problem) for family in families(rows).values()}


def _family(rows: list[Row], runs: Sequence[Run], problem: Problem) -> dict[str, Figure]:
    accuracy, *probabilities = METRICS
    figures: dict[str, Figure | None] = {}
    if _has(rows, ID):
        figures["Accuracy against shots"] = over_shots(rows, [accuracy])
        figures["NLL and ECE against shots"] = over_shots(rows, probabilities)
    if _has(rows, ID) and _has(rows, MEAN_OOD):
        figures["In against out of distribution"] = id_against_ood(rows)
    figures["Ranks over datasets"] = rank_figure(rows)
    figures["Calibration"] = calibration_bars(rows)
    panels = _panels(rows, runs)
    if panels:
        few = _worst(panels)
        which = "" if few == panels else f": ID and the {MOST_PANELS - 1} sets with the largest ECE"
        figures[f"Reliability, one seed{which}"] = reliability_grid(few)
    figures["Risk against coverage"] = risk_figure(rows, runs, problem)
    figures |= learning_figures(rows, runs, problem)
    if any(row.trained and (COST, "seconds") in row.values for row in rows):
        figures["Cost beside quality"] = cost_against_quality(rows)
    return {caption: figure for caption, figure in figures.items() if figure is not None}


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


def _worst(panels: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The panels of `MOST_PANELS` sets: the first (ID), and those with the largest mean ECE."""
    sets: dict[str, list[float]] = defaultdict(list)
    for row in panels.values():
        for name, metrics in row.items():
            sets[name].append(metrics["ece"])
    first, *others = sets
    by_ece = sorted(others, key=lambda name: -sum(sets[name]) / len(sets[name]))
    kept = {first, *by_ece[: MOST_PANELS - 1]}
    chosen = {
        label: {name: one for name, one in row.items() if name in kept} for label, row in panels.items()
    }
    return {label: row for label, row in chosen.items() if row}
