"""The critical-difference view: average ranks over datasets, and which differences are beyond chance."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkal.report.aggregate import Row
from clipkal.report.figures import at_common_shots, look_of, new_figure
from clipkal.report.metric import METRICS
from clipkal.report.ranks import Ranks, ranks
from clipkal.report.style import INK, MUTED, RULE, Style, plain, shown
from clipkal.report.values import ID, MEAN_OOD


def rank_figure(rows: Sequence[Row]) -> Figure | None:
    """Ranks of accuracy, NLL and ECE, ID and mean OOD, at the common number of shots; None where no ranks can be made.

    A dot is a method's average rank, its bar half the critical difference to either side: two methods are distinguishable
    where their bars do not overlap. The grey band is the reach of the best.
    """
    chosen, look = at_common_shots(rows), look_of(rows)
    panels = {
        (metric, name): found
        for metric in METRICS
        for name in (ID, MEAN_OOD)
        if (found := ranks(chosen, name, metric)) is not None
    }
    if not panels:
        return None
    names = list(dict.fromkeys(name for _, name in panels))
    metrics = list(dict.fromkeys(metric for metric, _ in panels))
    most = max(len(found.labels) for found in panels.values())
    figure = new_figure(1.0 + 5.6 * len(names), 0.5 + len(metrics) * (0.9 + 0.3 * most))
    grid = figure.subplots(len(metrics), len(names), squeeze=False)
    for line, metric in zip(grid, metrics, strict=True):
        for axes, name in zip(line, names, strict=True):
            if (metric, name) in panels:
                _panel(axes, panels[metric, name], f"{metric.title}, {name}", look, chosen[0].parts_are)
            else:
                axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("average rank (1 is best)")
    return figure


def _panel(axes: Axes, found: Ranks, title: str, look: dict[str, Style], over: str) -> None:
    half = found.critical / 2
    places = range(len(found.labels))
    axes.axvspan(found.ranks[0] - half, found.ranks[0] + half, color=RULE, alpha=0.5, linewidth=0)
    for place, label, rank in zip(places, found.labels, found.ranks, strict=True):
        style = look[label]
        axes.plot(
            [rank - half, rank + half], [place, place], color=style.color, linewidth=2, solid_capstyle="butt"
        )
        axes.plot([rank], [place], marker="o", color=style.color, markersize=7)
        axes.annotate(
            f"{rank:.1f}",
            (rank, place),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(places, [shown(label) for label in found.labels])
    axes.set_ylim(len(found.labels) - 0.5, -0.7)
    p = "p < .001" if found.p_friedman < 0.001 else f"p = {found.p_friedman:.3f}"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_title(
        f"{found.datasets} {over} · CD {found.critical:.2f} · Friedman {p}",
        loc="right",
        fontsize=8,
        color=MUTED,
    )
    plain(axes, grid="x")
