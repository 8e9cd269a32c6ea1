"""How good the probabilities are: calibration error and NLL as bars."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipkal.report.aggregate import Estimate, Row
from clipkal.report.figures import common_shots, look_of, new_figure
from clipkal.report.style import INK, MUTED, paler, plain, shown
from clipkal.report.values import ID, MEAN_OOD


def calibration_bars(rows: Sequence[Row]) -> Figure:
    """ECE and NLL of every method and predictive at the most shots they all have; dark is ID, pale the mean OOD."""
    shots = common_shots(rows)
    chosen = [row for row in rows if row.shots == shots]
    known = {row.label for row in chosen}
    chosen += [row for row in rows if not row.trained and row.label not in known]
    figure = new_figure(9.6, 1.3 + 0.52 * len(chosen))
    panels = figure.subplots(1, 2, sharey=True)
    look = look_of(rows)
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
