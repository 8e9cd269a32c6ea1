"""Reliability diagrams as small multiples: is a stated confidence of 80 % right in 80 % of the cases?"""

from collections.abc import Mapping
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from clipkal.report.style import BAD, GOOD, INK, MUTED, plain, shown
from clipkal.tracking.reported import SCALED

KEY = "dot area: share of images · orange: over-confident, blue: under-confident"
WIDE = 14
"""With more sets than this, sets go down the page instead of across."""


MARKS = {"id": " (ID)", "transfer": " (transfer)"}
"""What stands behind the name of a set, by role."""


class HasResults(Protocol):
    """An `Evaluation`, or whatever gives the same dictionary."""

    def to_dict(self) -> dict[str, Any]:
        """The parts `sets`, `detection` and `evaluation` of results.json."""
        ...


def reliability_figure(evaluation: HasResults | Mapping[str, Any]) -> Figure:
    """Reliability of one run: a row per predictive, a column per set (the other way round for many sets).

    Temperature-scaled predictives are in results.json and in the report, not here.

    Args:
        evaluation: an `Evaluation`, or the content of a results.json.
    """
    content: Mapping[str, Any] = evaluation if isinstance(evaluation, Mapping) else evaluation.to_dict()
    panels: dict[str, dict[str, Any]] = {}
    for name, one in content["sets"].items():
        title = name + MARKS.get(one["role"], "")
        for predictive, metrics in one["predictive"].items():
            if not predictive.endswith(SCALED):
                panels.setdefault(predictive, {})[title] = metrics
    return reliability_grid(panels)


def reliability_grid(panels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Panels by row and column; each is a dictionary with `reliability`, `ece`, `accuracy` and `confidence`.

    A dot is a bin: its place is mean confidence and accuracy, its area the share of images. Below the
    diagonal, in orange, the model is over-confident; above it, in blue, under-confident.
    """
    columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    if len(columns) > WIDE:
        panels = {c: {r: row[c] for r, row in panels.items() if c in row} for c in columns}
        columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    width, height = 2.3 * len(columns) + 1.0, 2.4 * len(panels) + 1.1
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    margins = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.6 / height, "top": 1 - 0.6 / height}
    spacing = {**margins, "wspace": 0.1}
    grid = figure.subplots(len(panels), len(columns), squeeze=False, gridspec_kw=spacing)
    for axes_row, (name, row) in zip(grid, panels.items(), strict=True):
        for axes, column in zip(axes_row, columns, strict=True):
            _empty(axes)
            if column in row:
                _panel(axes, row[column])
            axes.label_outer()  # all panels have the same axes; to share them costs as much as all the rest
        axes_row[0].set_ylabel(f"{shown(name)}\naccuracy", color=INK)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(shown(column), fontsize=10, color=INK, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("confidence")
    figure.suptitle(KEY, fontsize=8, color=MUTED, x=0.01, y=1 - 0.08 / height, ha="left", va="top")
    return figure


def _empty(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.set_aspect("equal")
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    plain(axes, grid="both")


def _panel(axes: Axes, metrics: Mapping[str, Any]) -> None:
    bins = [b for b in metrics["reliability"] if b["n"]]
    total = sum(b["n"] for b in bins)
    confidence, accuracy = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    share = [b["n"] / total for b in bins]
    fade = [min(0.8, 0.2 + 6 * s) for s in share]  # a bin of few images must not shout
    colors = [to_rgba(BAD if c > a else GOOD, f) for c, a, f in zip(confidence, accuracy, fade, strict=True)]
    axes.vlines(confidence, confidence, accuracy, colors=colors, linewidth=1.2)
    axes.scatter(confidence, accuracy, s=[8 + 340 * s for s in share], color=colors, linewidths=0)
    lines = [f"ECE {100 * metrics['ece']:.1f} %", f"acc. {100 * metrics['accuracy']:.1f} %"]
    lines.append(f"conf. {100 * metrics['confidence']:.1f} %")
    axes.text(1.02, 0, "\n".join(lines), va="bottom", ha="right", fontsize=8, color=INK)
