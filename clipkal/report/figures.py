"""What all figures over many runs share, and the curves over shots.

Figures are built without pyplot, so there is no global state, no window, and nothing to close. All take the
rows of one dataset and backbone (`aggregate`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipkal.report.aggregate import Row, shots_rank
from clipkal.report.metric import Metric
from clipkal.report.style import INK, Style, plain, shown, styles
from clipkal.report.values import ID, MEAN_OOD

PANELS = {ID: "In distribution", MEAN_OOD: "Out of distribution (mean)"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that renders by Agg and leaves space for its labels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def over_shots(rows: Sequence[Row], metrics: Sequence[Metric]) -> Figure:
    """Metrics against shots, in distribution and as the mean over OOD sets; bands are 95 % intervals over seeds."""
    curves = curves_of(rows)
    look = look_of(rows)
    ticks = sorted({row.shots for points in curves.values() for row in points}, key=shots_rank)
    place = {shots: index for index, shots in enumerate(ticks)}  # shots double from tick to tick
    names = [name for name in PANELS if any((name, metrics[0].key) in r.values for r in rows)]
    figure = new_figure(4.6 * len(names) + 1.4, 0.6 + 3.3 * len(metrics))
    panels = figure.subplots(len(metrics), len(names), squeeze=False)
    for line, metric in zip(panels, metrics, strict=True):
        for axes, name in zip(line, names, strict=True):
            for index, (label, points) in enumerate(curves.items()):
                apart = 0.4 * ((index + 0.5) / len(curves) - 0.5) if len(ticks) == 1 else 0.0  # side by side
                at = {shots: x + apart for shots, x in place.items()}
                _curve(axes, points, name, metric, at, look[label])
            axes.set_xticks(range(len(ticks)), [shown(shots) for shots in ticks])
            axes.set_xlim(-0.3, len(ticks) - 0.7)
            within(axes, metric)
            plain(axes)
        line[0].set_ylabel(metric.title)
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(PANELS[name], loc="left", fontsize=11, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("shots (images per class)")
    add_legend(figure, panels[0][0])
    return figure


def within(axes: Axes, metric: Metric) -> None:
    """Cuts the y axis to what a metric can be, whatever the intervals: 0 and more, and at most 100 %."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low), min(100, high) if metric.factor == 100 else high)


def _curve(
    axes: Axes, points: Sequence[Row], name: str, metric: Metric, place: dict[str, float], style: Style
) -> None:
    key = (name, metric.key)
    there = [row for row in points if key in row.values]
    if not there:
        return
    label = shown(there[0].label)
    estimates = [row.values[key] for row in there]
    y = [metric.factor * e.mean for e in estimates]
    if not there[0].trained and len(set(y)) == 1:  # zero-shot: the same at any number of shots
        axes.axhline(y[0], color=style.color, linestyle=style.line, linewidth=1.6, label=label)
        return
    x = [place[row.shots] for row in there]
    half = [metric.factor * (e.half_width or 0) for e in estimates]
    look: dict[str, Any] = {"color": style.color, "marker": style.marker, "markersize": 6, "linewidth": 2}
    axes.plot(x, y, style.line, label=label, **look)
    low, high = ([v + sign * h for v, h in zip(y, half, strict=True)] for sign in (-1, 1))
    if len(x) > 1:
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, linewidth=0)
    elif half[0]:
        axes.errorbar(x, y, half, color=style.color, linewidth=1.5)


def common_shots(rows: Sequence[Row]) -> str:
    """The largest number of shots among those that the most rows have."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.shots] += 1
    return max(counts, key=lambda shots: (counts[shots], shots_rank(shots)))


def at_common_shots(rows: Sequence[Row]) -> list[Row]:
    """The reported row of each method at the common number of shots; one that learns nothing at any."""
    shots = common_shots(rows)
    chosen = {label: [r for r in points if r.shots == shots] for label, points in curves_of(rows).items()}
    untrained = {label: [r for r in points if not r.trained] for label, points in curves_of(rows).items()}
    return [(found or untrained[label])[0] for label, found in chosen.items() if found or untrained[label]]


def curves_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The reported rows of each method, from few shots to many."""
    curves: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.reported:
            curves[row.label].append(row)
    return {label: sorted(curves[label], key=lambda row: shots_rank(row.shots)) for label in sorted(curves)}


def look_of(rows: Sequence[Row]) -> dict[str, Style]:
    """The style of each row's method."""
    return styles((row.label for row in rows), (row.label for row in rows if not row.trained))


def add_legend(figure: Figure, axes: Axes) -> None:
    """The legend of one panel, to the right of them all."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, labelcolor=INK)
