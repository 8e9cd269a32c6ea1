"""A chart of several lines as a figure."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipkal.report.style import INK, MARKERS, MUTED, PALETTE, plain, shown
from clipkal.tracking.tracker import Lines


def lines_figure(chart: Lines) -> Figure:
    """One panel with a labelled line for each series; line styles tell apart what shares a colour."""
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (label, (xs, ys)) in enumerate(chart.series.items()):
        again = place // len(PALETTE)
        marker = MARKERS[place % len(MARKERS)] if len(xs) < 3 else None
        style: dict[str, Any] = {
            "color": PALETTE[place % len(PALETTE)],
            "linestyle": ("-", "--", ":")[again % 3],
            "marker": marker,
        }
        axes.plot(xs, ys, label=shown(label), linewidth=1.6, markersize=4, **style)
    axes.set_xlabel(chart.x, color=INK)
    axes.set_ylabel(chart.y, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_title(chart.title, fontsize=10, color=INK, loc="left")
    plain(axes, grid="both")
    figure.legend(loc="outside right center", fontsize=8, frameon=False, labelcolor=MUTED)
    return figure
