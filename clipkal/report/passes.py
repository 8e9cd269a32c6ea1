"""Learning curves: how a method gets better with every image that it sees, from metrics.csv."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkal.errors import DataError
from clipkal.report.aggregate import Row
from clipkal.report.collect import Run
from clipkal.report.figures import add_legend, at_common_shots, look_of, new_figure
from clipkal.report.results import is_number
from clipkal.report.style import INK, Style, plain, shown

METRICS_FILE = "metrics.csv"
TRIAL_STEPS = 100_000
"""The step in metrics.csv is trial · 100,000 + epoch."""
SHOWN = {"val_nll": "NLL on validation images (nats)", "train_loss": "Training loss (nats)"}

Curves = dict[str, list[tuple[float, float]]]
"""Metric -> (images seen, value), in the order of the steps."""


def passes_figure(rows: Sequence[Row], runs: Sequence[Run], problem: Callable[[str], None]) -> Figure | None:
    """Each seed of each method at the common number of shots: the trial that was kept, pass by pass; the dot is the kept pass.

    Args:
        rows: of one dataset and backbone.
        runs: those behind them, among others.
        problem: is told of each file that cannot be read; its run is left out of the figure.

    Returns:
        None where no run has such a curve.
    """
    by_id = {run.run_id: run for run in runs}
    chosen = [row for row in at_common_shots(rows) if row.trained]
    found = {
        (row.label, run_id): (by_id[run_id], curves)
        for row in chosen
        for run_id in row.run_ids
        if run_id in by_id and (curves := _told(by_id[run_id], problem))
    }
    names = [name for name in SHOWN if any(name in curves for _, curves in found.values())]
    if not names:
        return None
    look = look_of(rows)
    figure = new_figure(4.6 * len(names) + 1.4, 3.9)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for (label, _), (run, curves) in found.items():
            _curve(axes, curves.get(name, []), _kept_epoch(run) * _images(run), look[label])
        axes.set_xscale("symlog", linthresh=min(_images(run) for run, _ in found.values()))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.set_xlabel("images seen, every pass counted")
        axes.set_title(SHOWN[name], loc="left", fontsize=11, color=INK)
        plain(axes, grid="both")
    for label in dict.fromkeys(label for label, _ in found):
        panels[0].plot([], [], color=look[label].color, marker=look[label].marker, label=shown(label))
    add_legend(figure, panels[0])
    return figure


def _curve(axes: Axes, points: Sequence[tuple[float, float]], kept: float, style: Style) -> None:
    """One seed's line, with a dot at the pass that was kept."""
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color=style.color, linewidth=1.3, alpha=0.75)
    for x, y in points:
        if x == kept:
            axes.plot([x], [y], marker=style.marker, color=style.color, markersize=7)


def _told(run: Run, problem: Callable[[str], None]) -> Curves:
    path = run.path / METRICS_FILE
    trials = [one.get("rate") for one in run.training.get("trials", [])]
    rate = run.training.get("rate")
    if not path.is_file() or rate not in trials or not _images(run):
        return {}
    try:
        return learning_curves(path, trials.index(rate), _images(run))
    except DataError as error:
        problem(str(error))
        return {}


def _images(run: Run) -> int:
    images: Any = run.run.get("train_images")
    return int(images) if is_number(images) else 0


def _kept_epoch(run: Run) -> float:
    epoch: Any = run.training.get("epoch")
    return float(epoch) if is_number(epoch) else math.nan


def learning_curves(path: Path, trial: int, images: int) -> Curves:
    """The finite values of one trial against the images it has seen, `images` in a pass.

    Raises:
        DataError: the file is no metrics.csv.
    """
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file, strict=True):
                if line["split"] == f"trial{trial}":
                    epoch, value = int(line["step"]) - trial * TRIAL_STEPS, float(line["value"])
                    if math.isfinite(value) and 0 <= epoch < TRIAL_STEPS:
                        curves[line["metric"]].append((float(epoch * images), value))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read ({reason}); left out of the learning curves") from error
    return dict(curves)
