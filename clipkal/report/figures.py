"""Figures over many runs: what shots bring, what survives off distribution, how good the probabilities are.

Figures are built without pyplot, so there is no global state, no window, and nothing to close. All take the
rows of one dataset and backbone (`aggregate`).
"""

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipkal.report.aggregate import ID, MEAN_OOD, Estimate, Row, shots_rank
from clipkal.report.reliability import reliability_figure, reliability_grid
from clipkal.report.style import INK, MUTED, Style, paler, plain, shown, styles

__all__ = ["calibration_bars", "id_against_ood", "learning_curves", "reliability_figure", "reliability_grid"]

PANELS = {ID: "In distribution", MEAN_OOD: "Out of distribution (mean)"}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that renders by Agg and leaves space for its labels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def learning_curves(rows: Sequence[Row]) -> Figure:
    """Accuracy against shots, in distribution and as the mean over OOD sets; bands are 95 % intervals over seeds."""
    curves = _curves(rows)
    look = _look(rows)
    ticks = sorted({row.shots for points in curves.values() for row in points}, key=shots_rank)
    place = {shots: index for index, shots in enumerate(ticks)}  # shots double from tick to tick
    names = [name for name in PANELS if any((name, "accuracy") in r.values for r in rows)]
    figure = new_figure(4.6 * len(names) + 1.4, 3.9)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for label, points in curves.items():
            _curve(axes, points, name, place, look[label])
        axes.set_xticks(range(len(ticks)), [shown(shots) for shots in ticks])
        axes.set_xlim(-0.3, len(ticks) - 0.7)
        axes.set_title(PANELS[name], loc="left", fontsize=11, color=INK)
        axes.set_xlabel("shots (images per class)")
        plain(axes)
    panels[0].set_ylabel("accuracy (%)")
    _legend(figure, panels[0], right=True)
    return figure


def _curve(axes: Axes, points: Sequence[Row], name: str, place: dict[str, int], style: Style) -> None:
    there = [row for row in points if (name, "accuracy") in row.values]
    if not there:
        return
    estimates = [row.values[name, "accuracy"] for row in there]
    y = [100 * e.mean for e in estimates]
    if not there[0].trained and len(set(y)) == 1:  # zero-shot: the same at any number of shots
        axes.axhline(
            y[0], color=style.color, linestyle=style.line, linewidth=1.6, label=shown(there[0].label)
        )
        return
    x = [place[row.shots] for row in there]
    half = [100 * (e.half_width or 0) for e in estimates]
    axes.plot(
        x,
        y,
        style.line,
        color=style.color,
        marker=style.marker,
        markersize=6,
        linewidth=2,
        label=shown(there[0].label),
    )
    low, high = ([v + sign * h for v, h in zip(y, half, strict=True)] for sign in (-1, 1))
    if len(x) > 1:
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, linewidth=0)
    elif half[0]:
        axes.errorbar(x, y, half, color=style.color, linewidth=1.5)


def id_against_ood(rows: Sequence[Row]) -> Figure:
    """ID accuracy against mean OOD accuracy, one trail per method from few shots to many; on the diagonal nothing is lost."""
    figure = new_figure(6.2, 4.6)
    axes = figure.subplots()
    look = _look(rows)
    drawn: list[float] = []
    for label, points in _curves(rows).items():
        there = [r for r in points if {(ID, "accuracy"), (MEAN_OOD, "accuracy")} <= set(r.values)]
        pairs = [
            (100 * r.values[ID, "accuracy"].mean, 100 * r.values[MEAN_OOD, "accuracy"].mean) for r in there
        ]
        if not pairs:
            continue
        x, y = zip(*pairs, strict=True)
        drawn += [*x, *y]
        style = look[label]
        marker = "D" if not there[0].trained else style.marker
        axes.plot(x, y, color=style.color, linewidth=1.2, alpha=0.55)
        axes.plot(x, y, linestyle="", marker=marker, color=style.color, markersize=7, label=shown(label))
        _crosses(axes, there, style.color)
        for row, position in zip(there, pairs, strict=True):
            if row.trained and row in (there[0], there[-1]):
                axes.annotate(
                    shown(row.shots), position, (6, -4),
                    textcoords="offset points", fontsize=8, color=style.color,
                )  # fmt: skip
    _diagonal(axes, drawn)
    axes.set_xlabel("ID accuracy (%)")
    axes.set_ylabel("mean OOD accuracy (%)")
    axes.set_title("Numbers at the points are shots", loc="left", fontsize=9, color=MUTED)
    plain(axes, grid="both")
    _legend(figure, axes, right=True)
    return figure


def _crosses(axes: Axes, rows: Sequence[Row], color: str) -> None:
    for row in rows:
        x, y = row.values[ID, "accuracy"], row.values[MEAN_OOD, "accuracy"]
        axes.errorbar(
            100 * x.mean, 100 * y.mean, 100 * (y.half_width or 0), 100 * (x.half_width or 0),
            color=color, linewidth=0.8, alpha=0.5,
        )  # fmt: skip


def _diagonal(axes: Axes, values: Sequence[float]) -> None:
    """The line ID = OOD where it crosses the window, without changing the window."""
    if not values:
        return
    limits = axes.get_xlim(), axes.get_ylim()
    axes.axline((50, 50), slope=1, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])


def calibration_bars(rows: Sequence[Row]) -> Figure:
    """ECE and NLL of every method and predictive at the most shots they all have; dark is ID, pale the mean OOD."""
    shots = _common_shots(rows)
    chosen = [row for row in rows if row.shots == shots]
    known = {row.label for row in chosen}
    chosen += [row for row in rows if not row.trained and row.label not in known]
    figure = new_figure(9.6, 1.3 + 0.52 * len(chosen))
    panels = figure.subplots(1, 2, sharey=True)
    look = _look(rows)
    for axes, (metric, title, factor, form) in zip(panels, _BARS, strict=True):
        widest = 0.0
        for index, row in enumerate(chosen):
            for shift, name, white in ((-0.19, ID, 0.0), (0.19, MEAN_OOD, 0.55)):
                value = row.values.get((name, metric))
                if value is not None:
                    color = paler(look[row.label].color, white)
                    widest = max(widest, _bar(axes, index + shift, value, factor, form, color))
        axes.set_xlim(0, 1.18 * widest or 1)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.locator_params(axis="x", nbins=6)
        plain(axes, grid="x")
    panels[0].set_yticks(range(len(chosen)), [_bar_name(row) for row in chosen])
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{shown(shots)} shots · upper bar: in distribution, lower pale bar: mean OOD · lower is better",
        fontsize=9, color=MUTED, x=0.01, ha="left",
    )  # fmt: skip
    return figure


_BARS = (("ece", "ECE (%)", 100.0, "{:.1f}"), ("nll", "NLL (nats)", 1.0, "{:.2f}"))


def _bar(axes: Axes, y: float, value: Estimate, factor: float, form: str, color: str) -> float:
    """Draws one bar with its interval and number; returns how far it reaches (0 for an infinite one)."""
    if value.mean == float("inf"):
        axes.annotate("∞", (0, y), (3, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
        return 0.0
    mean, half = factor * value.mean, factor * (value.half_width or 0)
    axes.barh(y, mean, height=0.34, color=color, linewidth=0)
    if half:
        axes.plot([max(mean - half, 0), mean + half], [y, y], color=INK, linewidth=1)
    axes.annotate(
        form.format(mean),
        (mean + half, y),
        (3, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )
    return mean + half


def _bar_name(row: Row) -> str:
    return shown(row.label if row.reported else f"{row.label} · {row.predictive}")


def _common_shots(rows: Sequence[Row]) -> str:
    """The largest number of shots among those that the most rows have."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.shots] += 1
    return max(counts, key=lambda shots: (counts[shots], shots_rank(shots)))


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The reported rows of each method, from few shots to many."""
    curves: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.reported:
            curves[row.label].append(row)
    return {label: sorted(curves[label], key=lambda row: shots_rank(row.shots)) for label in sorted(curves)}


def _look(rows: Sequence[Row]) -> dict[str, Style]:
    return styles((row.label for row in rows), (row.label for row in rows if not row.trained))


def _legend(figure: Figure, axes: Axes, right: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, labelcolor=INK)
