"""How figures look: one colour, marker and line per method in every figure, safe for colour-blind readers."""

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from clipkal.tracking.writing import printable

INK, MUTED, RULE = "#1f2430", "#6b7280", "#d8dce3"
GOOD, BAD = "#0072B2", "#D55E00"

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7A5C00")
"""Okabe & Ito (2008) without black and yellow (too pale for a line), and two more that stay apart in
simulation.
"""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
KNOWN = {"kalman": 0, "adamw": 1, "kalman_online": 2, "sgd": 3, "rkalman": 4, "reng": 5, "ring": 6}
UNTRAINED = "#6b7280"
LONGEST = 40


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of one method."""

    color: str
    marker: str
    line: str = "-"


def styles(labels: Iterable[str], untrained: Iterable[str] = ()) -> dict[str, Style]:
    """A style for each label. Methods in `KNOWN` always have theirs; others take what is left, in sorted order."""
    labels, untrained = sorted(set(labels)), set(untrained)
    free = [i for i in range(len(PALETTE)) if i not in {KNOWN[name] for name in labels if name in KNOWN}]
    found, others = {}, 0
    for label in labels:
        if label in untrained:
            found[label] = Style(UNTRAINED, "_", "--")
        elif label in KNOWN:
            found[label] = Style(PALETTE[KNOWN[label]], MARKERS[KNOWN[label]])
        else:
            place, again = others, 0
            if free and others < len(free):
                place = free[others]
            else:
                again = 1 + (others - len(free)) // len(PALETTE)
            index = place % len(PALETTE)
            found[label] = Style(
                PALETTE[index], MARKERS[(index + 3 * again) % len(MARKERS)], ("-", ":", "-.")[again % 3]
            )
            others += 1
    return found


def shown(text: str) -> str:
    """A name from the data as it may stand in a figure: every text that is not our own goes through here.

    What matplotlib would read as mathematics between two `$` is escaped, characters that no font has are
    written out, and of a line of more than `LONGEST` characters the middle is left out.
    """
    lines = [printable(line).replace("$", r"\$") for line in map(_shortened, text.split("\n"))]
    return "\n".join(lines)


def _shortened(line: str) -> str:
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]}…{line[-half:]}"


def paler(color: str, white: float) -> str:
    """The colour mixed with a share of white, opaque: 0 leaves it, 1 is white."""
    red, green, blue = (white + (1 - white) * part for part in to_rgb(color))
    return to_hex((red, green, blue))


def plain(axes: Axes, grid: str = "y") -> None:
    """A quiet frame: no box, thin grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def plain_ticks(axes: Axes) -> None:
    """Numbers such as 0.05 and 200 along a logarithmic x axis, no powers of ten."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
