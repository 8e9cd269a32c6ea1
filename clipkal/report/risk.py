"""Risk–coverage: how the error falls when the least confident images are left out, from predictions.parquet."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clipkal.errors import DataError
from clipkal.report.aggregate import Row
from clipkal.report.collect import Run
from clipkal.report.figures import PANELS, add_legend, at_common_shots, look_of, new_figure
from clipkal.report.style import INK, plain, shown
from clipkal.report.values import ID, MEAN_OOD

PREDICTIONS = "predictions.parquet"
ASKED = re.compile("^keep: (model|results)$", re.M)
"""How config.yaml says that the table was not wanted."""
NEEDED = ["set", "role", "label", "predicted", "confidence"]
COVERAGE = np.linspace(0.02, 1, 99)
"""Below 2 % a handful of images decides."""
TITLES = {"id": ID, "ood": MEAN_OOD}

Curves = dict[str, np.ndarray]
"""ID and mean OOD -> the risk at each `COVERAGE`."""


def risk_figure(rows: Sequence[Row], runs: Sequence[Run], problem: Callable[[str], None]) -> Figure | None:
    """The reported predictive of each method at the common number of shots: a mean over seeds, and over OOD sets.

    Args:
        rows: of one dataset and backbone.
        runs: those behind them, among others.
        problem: is told of each table that cannot be read, and how many runs were not to keep one; these are left out of
            the figure.

    Returns:
        None where no run has a table.
    """
    by_id = {run.run_id: run for run in runs}
    found: dict[str, Curves] = {}
    left_out = 0
    for row in at_common_shots(rows):
        paths = [by_id[one].path / PREDICTIONS for one in row.run_ids if one in by_id]
        left_out += sum(map(_left_out, paths))
        curves = [one for path in paths if (one := _told(path, row.predictive, problem))]
        if curves:
            found[row.label] = {
                name: np.mean([one[name] for one in curves if name in one], axis=0)
                for name in dict.fromkeys(name for one in curves for name in one)
            }
    if left_out:
        problem(f"{left_out} runs from the risk–coverage figure: their keep=… left out {PREDICTIONS}")
    return _drawn(found, rows) if found else None


def _left_out(path: Path) -> bool:
    """Whether a run has no table because it was asked not to keep it."""
    try:
        return not path.is_file() and bool(ASKED.search(path.with_name("config.yaml").read_text("utf-8")))
    except (OSError, UnicodeDecodeError):
        return False


def _told(path: Path, predictive: str, problem: Callable[[str], None]) -> Curves:
    if not path.is_file():
        return {}
    try:
        return risk_curves(path, predictive)
    except DataError as error:
        problem(str(error))
        return {}


def risk_curves(path: Path, predictive: str) -> Curves:
    """The risk at each `COVERAGE` of one run's predictions, on ID and as the mean over its OOD sets.

    Raises:
        DataError: the file is no such table.
    """
    import pyarrow as pa
    from pyarrow import parquet

    from clipkal.metrics.selective import risk_coverage  # imports torch

    curves: dict[str, list[np.ndarray]] = defaultdict(list)
    try:
        table = parquet.read_table(path, columns=NEEDED, filters=[("predictive", "==", predictive)])
        columns = {name: table[name].to_numpy() for name in NEEDED}
        for name in dict.fromkeys(columns["set"]):
            mine = columns["set"] == name
            role = TITLES.get(str(columns["role"][mine][0]))
            if role:
                right = columns["label"][mine] == columns["predicted"][mine]
                coverage, risk = risk_coverage(columns["confidence"][mine].astype(float), right.astype(float))
                curves[role].append(np.interp(COVERAGE, coverage.numpy(), risk.numpy()))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read ({reason}); left out of the risk–coverage figure") from error
    return {role: np.mean(some, axis=0) for role, some in curves.items()}


def _drawn(found: dict[str, Curves], rows: Sequence[Row]) -> Figure:
    look = look_of(rows)
    names = [name for name in PANELS if any(name in curves for curves in found.values())]
    figure = new_figure(4.6 * len(names) + 1.4, 3.9)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for label, curves in found.items():
            if name in curves:
                style = look[label]
                line = style.line if style.marker != "_" else "--"
                axes.plot(
                    100 * COVERAGE,
                    100 * curves[name],
                    line,
                    color=style.color,
                    linewidth=2,
                    label=shown(label),
                )
        axes.set_xlabel("coverage (% of the images, the most confident first)")
        axes.set_title(PANELS[name], loc="left", fontsize=11, color=INK)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, 100)
        plain(axes, grid="both")
    panels[0].set_ylabel("error among them (%)")
    add_legend(figure, panels[0])
    return figure
