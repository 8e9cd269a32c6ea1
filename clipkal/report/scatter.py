"""Two numbers of each method against each other: ID and OOD accuracy, cost and quality."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkal.report.aggregate import Row
from clipkal.report.figures import add_legend, at_common_shots, curves_of, look_of, new_figure, within
from clipkal.report.metric import METRICS, cost_of
from clipkal.report.style import INK, MUTED, plain, plain_ticks, shown
from clipkal.report.values import COST, ID, MEAN_OOD

Points = Sequence[tuple[float, float]]


def id_against_ood(rows: Sequence[Row]) -> Figure:
    """ID accuracy against mean OOD accuracy, one trail per method from few shots to many.

    On the line OOD = ID nothing is lost by the shift. A second one runs parallel to it through zero-shot (the mean of the points
    where there is none): above it a method has gained more out of distribution than in it.
    """
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots()
    look = look_of(rows)
    drawn: list[tuple[float, float]] = []
    untrained: list[tuple[float, float]] = []
    for label, points in curves_of(rows).items():
        there = [r for r in points if {(ID, "accuracy"), (MEAN_OOD, "accuracy")} <= set(r.values)]
        pairs = [
            (100 * r.values[ID, "accuracy"].mean, 100 * r.values[MEAN_OOD, "accuracy"].mean) for r in there
        ]
        if not pairs:
            continue
        x, y = zip(*pairs, strict=True)
        drawn += pairs
        untrained += pairs if not there[0].trained else []
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
    _lines(axes, drawn, untrained)
    axes.set_xlabel("ID accuracy (%)")
    axes.set_ylabel("mean OOD accuracy (%)")
    axes.set_title("Numbers at the points are shots", loc="left", fontsize=9, color=MUTED)
    plain(axes, grid="both")
    add_legend(figure, axes)
    return figure


def _crosses(axes: Axes, rows: Sequence[Row], color: str) -> None:
    for row in rows:
        x, y = row.values[ID, "accuracy"], row.values[MEAN_OOD, "accuracy"]
        axes.errorbar(
            100 * x.mean, 100 * y.mean, 100 * (y.half_width or 0), 100 * (x.half_width or 0),
            color=color, linewidth=0.8, alpha=0.5,
        )  # fmt: skip


def _lines(axes: Axes, points: Points, untrained: Points) -> None:
    """Both lines, named in the legend, without changing the window."""
    if not points:
        return
    some = untrained or points
    lost = sum(x - y for x, y in some) / len(some)
    whose = "as zero-shot" if untrained else "in the mean"
    _line(axes, 0.0, "OOD = ID: nothing lost", (0, (5, 3)))
    if abs(lost) > 0.5:
        _line(axes, lost, f"{abs(lost):.1f} points {'lost' if lost > 0 else 'gained'}, {whose}", (0, (1, 2)))


def _line(axes: Axes, lost: float, label: str, dashes: tuple[int, tuple[int, int]]) -> None:
    """The line OOD = ID − lost where it crosses the window."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if max(left, bottom + lost) < min(right, top + lost):
        axes.axline((lost, 0), slope=1, color=MUTED, linewidth=1.2, linestyle=dashes, zorder=0, label=label)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)


def cost_against_quality(rows: Sequence[Row]) -> Figure:
    """Seconds of training against ID accuracy and NLL at the common number of shots; zero-shot, which costs none, is a line."""
    chosen, look, seconds = at_common_shots(rows), look_of(rows), cost_of("seconds")
    figure = new_figure(10.6, 3.9)
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, METRICS[:2], strict=True):
        for row in chosen:
            style, time, value = (
                look[row.label],
                row.values.get((COST, "seconds")),
                row.values.get((ID, metric.key)),
            )
            if value is None:
                continue
            half = metric.factor * (value.half_width or 0)
            if not row.trained:
                axes.axhline(
                    metric.factor * value.mean,
                    color=style.color,
                    linestyle=style.line,
                    label=shown(row.label),
                )
            elif time is not None and time.mean > 0:
                axes.errorbar(
                    time.mean, metric.factor * value.mean, half, color=style.color, marker=style.marker, markersize=7,
                    linewidth=1, linestyle="", label=shown(row.label),
                )  # fmt: skip
        axes.set_xscale("log")
        plain_ticks(axes)
        within(axes, metric)
        axes.set_xlabel(seconds.title)
        axes.set_title(f"{metric.title}, in distribution", loc="left", fontsize=11, color=INK)
        plain(axes, grid="both")
    add_legend(figure, panels[0])
    return figure
