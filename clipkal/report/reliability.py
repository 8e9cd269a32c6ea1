"""Reliability diagrams as small multiples: is a stated confidence of 80 % right in 80 % of the cases?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from clipkal.report.style import BAD, GOOD, INK, MUTED, RULE, plain, shown
from clipkal.tracking.reported import reported

KEY = (
    "dots: accuracy in a bin of confidence, with its 95 % interval · orange: over-confident, blue: under-confident · "
    "bars: share of images"
)
WIDE = 14
"""With more sets than this, sets go down the page instead of across."""
ACROSS, MOST = 4, 8
"""Panels of one run in a row, and in all."""
MARKS = {"id": " (ID)", "transfer": " (transfer)"}
"""What stands behind the name of a set, by role."""

Metrics = Mapping[str, Any]
Panel = tuple[str, Metrics, str]
"""Title, the metrics of a set, and what stands at the left of the row (at the first panel of it)."""


class HasResults(Protocol):
    """An `Evaluation`, or whatever gives the same dictionary."""

    def to_dict(self) -> dict[str, Any]:
        """The parts `sets`, `detection` and `evaluation` of results.json."""
        ...


def reliability_figure(evaluation: HasResults | Mapping[str, Any]) -> Figure:
    """Reliability of one run's reported predictive, at most 8 panels.

    The ID set first; where there are several OOD sets, all of them together; then single sets. Of more than there is
    space for, the worst calibrated are drawn. Other predictives are in results.json and in the report.

    Args:
        evaluation: an `Evaluation`, or the content of a results.json.
    """
    content: Mapping[str, Any] = evaluation if isinstance(evaluation, Mapping) else evaluation.to_dict()
    sets = {name: (one["role"], one["predictive"]) for name, one in content["sets"].items()}
    chosen = reported(next(iter(sets.values()))[1])
    singles = [
        (name + MARKS.get(role, ""), role, predictives[chosen])
        for name, (role, predictives) in sets.items()
        if chosen in predictives
    ]
    first = [(title, metrics) for title, role, metrics in singles if role == "id"]
    shifted = [metrics for _, role, metrics in singles if role == "ood"]
    if len(shifted) > 1:
        first.append((f"{len(shifted)} OOD sets together", together(shifted)))
    rest = [(title, metrics) for title, role, metrics in singles if role != "id"]
    kept = sorted(rest, key=lambda pair: -pair[1]["ece"])[: max(0, MOST - len(first))]
    panels = [*first, *(pair for pair in rest if pair in kept)]
    left_out = len(rest) - len(kept)
    key = KEY + (f" · {left_out} sets with a lower ECE are left out" if left_out else "")
    rows = [panels[i : i + ACROSS] for i in range(0, len(panels), ACROSS)]
    grid = [[(title, metrics, shown(chosen)) for title, metrics in row] for row in rows]
    return _figure(grid, key)


def reliability_grid(panels: Mapping[str, Mapping[str, Metrics]]) -> Figure:
    """Panels by row and column; each is a dictionary with `reliability`, `ece`, `accuracy` and `confidence`.

    A dot is a bin: its place is mean confidence and accuracy. Below the diagonal, in orange, the model is
    over-confident; above it, in blue, under-confident. Below each panel stands how many images the bins have.
    """
    columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    if len(columns) > WIDE:
        panels = {c: {r: row[c] for r, row in panels.items() if c in row} for c in columns}
        columns = list(dict.fromkeys(column for row in panels.values() for column in row))
    grid: list[list[Panel | None]] = [
        [(column, row[column], shown(name)) if column in row else None for column in columns]
        for name, row in panels.items()
    ]
    return _figure(grid, KEY)


def together(sets: Sequence[Metrics]) -> dict[str, Any]:
    """What a panel needs of the images of several sets, as if they were one."""
    images = sum(one["n"] for one in sets)
    bins = []
    for same in zip(*(one["reliability"] for one in sets), strict=True):
        n = sum(b["n"] for b in same)
        means = {
            key: sum(b["n"] * b[key] for b in same if b["n"]) / n if n else None
            for key in ("accuracy", "confidence")
        }
        bins.append({"n": n, **means})
    gaps = [b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins if b["n"]]
    means = {key: sum(one["n"] * one[key] for one in sets) / images for key in ("accuracy", "confidence")}
    return {"reliability": bins, "ece": sum(gaps) / images, "n": images, **means}


def _figure(grid: Sequence[Sequence[Panel | None]], key: str) -> Figure:
    across = max(len(row) for row in grid)
    width, height = max(2.3 * across + 1.0, 4.2), 3.0 * len(grid) + 0.9
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    margins = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.5 / height, "top": 1 - 0.7 / height}
    places = figure.add_gridspec(len(grid), across, **margins, wspace=0.12, hspace=0.3)
    for r, row in enumerate(grid):
        for c, panel in enumerate(row):
            if panel is None:
                continue
            title, metrics, name = panel
            pair = places[r, c].subgridspec(2, 1, height_ratios=[5, 1], hspace=0.06)
            upper, lower = figure.add_subplot(pair[0]), figure.add_subplot(pair[1])
            _diagram(upper, metrics)
            _counts(lower, metrics)
            upper.set_title(shown(title), fontsize=10, color=INK, loc="left")
            if c == 0:
                upper.set_ylabel(f"{name}\naccuracy", color=INK)
                lower.set_ylabel("images", color=MUTED, fontsize=8)
            else:
                upper.set_yticklabels([])
            if r == len(grid) - 1:
                lower.set_xlabel("confidence")
    figure.suptitle(
        _wrapped(key, width), fontsize=8, color=MUTED, x=0.01, y=1 - 0.08 / height, ha="left", va="top"
    )
    return figure


def _wrapped(key: str, width: float) -> str:
    """The key in lines of the figure's width."""
    lines, room = [""], int(15.5 * width)
    for part in key.split(" · "):
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if len(longer) > room and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _diagram(axes: Axes, metrics: Metrics) -> None:
    bins = [b for b in metrics["reliability"] if b["n"]]
    confidence, accuracy = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    fade = [min(1.0, 0.25 + b["n"] / 40) for b in bins]  # a bin of few images must not shout
    colors = [to_rgba(BAD if c > a else GOOD, f) for c, a, f in zip(confidence, accuracy, fade, strict=True)]
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    low, high = zip(*(wilson(b["accuracy"], b["n"]) for b in bins), strict=True)
    axes.vlines(confidence, low, high, colors=colors, linewidth=1.2)
    axes.plot(confidence, accuracy, color=RULE, linewidth=1, zorder=1)
    axes.scatter(confidence, accuracy, s=26, color=colors, linewidths=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks([0, 0.5, 1], [])
    axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
    plain(axes, grid="both")
    lines = [f"ECE {100 * metrics['ece']:.1f} %", f"acc. {100 * metrics['accuracy']:.1f} %"]
    lines.append(f"conf. {100 * metrics['confidence']:.1f} %")
    below = metrics["confidence"] > metrics["accuracy"]  # then the upper left corner is free
    x, y, side = (0.03, 0.97, "left") if below else (0.98, 0.03, "right")
    axes.text(
        x, y, "\n".join(lines), transform=axes.transAxes,
        va="top" if below else "bottom", ha=side, fontsize=8, color=INK,
    )  # fmt: skip


def _counts(axes: Axes, metrics: Metrics) -> None:
    """How many images each bin has."""
    bins = metrics["reliability"]
    width, total = 1 / len(bins), sum(b["n"] for b in bins)
    axes.bar(
        [(i + 0.5) * width for i in range(len(bins))],
        [b["n"] / total for b in bins],
        0.86 * width,
        color=MUTED,
        linewidth=0,
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    axes.set_yticks([])
    plain(axes, grid="")
    axes.text(0.03, 0.95, f"{total:,} images", transform=axes.transAxes, va="top", fontsize=7, color=MUTED)


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's (1927) 95 % interval of a share of n images."""
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
