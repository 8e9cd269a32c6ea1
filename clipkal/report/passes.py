"""Learning curves: how a method gets better with every image that it sees, and with every second, from metrics.csv."""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from clipkal.errors import DataError
from clipkal.report.aggregate import Row
from clipkal.report.collect import Run
from clipkal.report.figures import add_legend, at_common_shots, look_of, new_figure
from clipkal.report.results import is_number
from clipkal.report.style import INK, Style, plain, shown

METRICS_FILE = "metrics.csv"
TRIAL_STEPS = 100_000
"""The step in metrics.csv is trial · 100,000 + passes, of which there may be parts."""
SHOWN = {
    "val_nll": ("NLL on validation images (nats)", 1),
    "val_accuracy": ("Accuracy on validation images (%)", 100),
    "train_loss": ("Training loss (nats)", 1),
}
"""Metric -> its title and the factor that it is shown by."""
SECONDS = "seconds"
MOST_EVEN = 10
"""Passes that an even axis shows; beyond that most of it would be those after which little changes."""

Curve = Mapping[float, float]
"""Images seen -> value, in the order of the steps."""


@dataclass(frozen=True)
class Learnt:
    """What a run tells of its learning.

    Attributes:
        curves: of the trial that was kept, by metric.
        images: in a pass over the shots.
        kept: images seen at the pass that was kept; NaN where that is not known.
    """

    curves: Mapping[str, Curve]
    images: int
    kept: float

    def points(self, metric: str, seconds: bool) -> list[tuple[float, float, bool]]:
        """(images seen or seconds spent in steps, value, whether it is the kept pass) of a metric."""
        values, spent = self.curves.get(metric, {}), self.curves.get(SECONDS, {})
        if not seconds:
            return [(seen, value, seen == self.kept) for seen, value in values.items()]
        return [(spent[seen], value, seen == self.kept) for seen, value in values.items() if seen in spent]

    def end_of_first_pass(self, seconds: bool) -> float:
        """In images seen or in seconds; 0 where that is not known."""
        return self.curves.get(SECONDS, {}).get(self.images, 0.0) if seconds else float(self.images)


def learning_figures(
    rows: Sequence[Row], runs: Sequence[Run], problem: Callable[[str], None]
) -> dict[str, Figure]:
    """Each seed of each method at the common number of shots: the trial that was kept; the marker is the kept pass.

    Args:
        rows: of one dataset and backbone.
        runs: those behind them, among others.
        problem: is told of each file that cannot be read; its run is left out of the figures.

    Returns:
        Figures by caption: over images seen, and over the seconds spent in steps; each where runs have what it shows.
    """
    by_id = {run.run_id: run for run in runs}
    found = [
        (row.label, learnt)
        for row in at_common_shots(rows)
        if row.trained
        for run_id in row.run_ids
        if run_id in by_id and (learnt := _learnt(by_id[run_id], problem))
    ]
    look = look_of(rows)
    images = _figure(found, look, seconds=False)
    seconds = _figure(found, look, seconds=True)
    captions = {"Learning curves over images seen": images, "Learning curves over seconds": seconds}
    return {caption: figure for caption, figure in captions.items() if figure is not None}


def _figure(found: Sequence[tuple[str, Learnt]], look: Mapping[str, Style], seconds: bool) -> Figure | None:
    """A panel a metric; None where no run has one."""
    found = [pair for pair in found if any(pair[1].points(name, seconds) for name in SHOWN)]
    names = [name for name in SHOWN if any(learnt.points(name, seconds) for _, learnt in found)]
    if not names:
        return None
    figure = new_figure(4.2 * len(names) + 1.4, 3.9)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        title, factor = SHOWN[name]
        for label, learnt in found:
            _line(axes, learnt.points(name, seconds), factor, look[label])
        _axis(axes, found, seconds)
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        plain(axes, grid="both")
    for label in dict.fromkeys(label for label, _ in found):
        panels[0].plot([], [], color=look[label].color, marker=look[label].marker, label=shown(label))
    add_legend(figure, panels[0])
    return figure


def _line(axes: Axes, points: Sequence[tuple[float, float, bool]], factor: float, style: Style) -> None:
    """One seed's line, with a marker at the pass that was kept."""
    x, y = [at for at, *_ in points], [factor * value for _, value, _ in points]
    axes.plot(x, y, color=style.color, linewidth=1.3, alpha=0.75)
    kept = [index for index, (*_, chosen) in enumerate(points) if chosen]
    axes.plot(x, y, markevery=kept, linestyle="", marker=style.marker, color=style.color, markersize=7)


def _axis(axes: Axes, found: Sequence[tuple[str, Learnt]], seconds: bool) -> None:
    """Even as far as the shortest first pass; from there on logarithmic, if there is much of it."""
    ends = [learnt.end_of_first_pass(seconds) for _, learnt in found]
    first = min((end for end in ends if end > 0), default=1.0)
    if axes.dataLim.x1 > MOST_EVEN * first:
        axes.set_xscale("symlog", linthresh=first, linscale=0.5)
        axes.set_xticks([0.0, *_ticks(first, axes.dataLim.x1)])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("seconds spent in steps" if seconds else "images seen, every pass counted")


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the two, and where these are few three times as much as well."""
    leading = (1, 3) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in leading]
    return [tick for tick in ticks if low <= tick <= high]


def _learnt(run: Run, problem: Callable[[str], None]) -> Learnt | None:
    path = run.path / METRICS_FILE
    trials = [one.get("rate") for one in run.training.get("trials", [])]
    rate, epoch, images = (
        run.training.get("rate"),
        run.training.get("epoch", math.nan),
        run.run.get("train_images"),
    )
    if not path.is_file() or rate not in trials or not is_number(images) or not images:
        return None
    kept = epoch * images if is_number(epoch) else math.nan
    try:
        return Learnt(learning_curves(path, trials.index(rate), int(images)), int(images), kept)
    except DataError as error:
        problem(str(error))
        return None


def learning_curves(path: Path, trial: int, images: int) -> dict[str, Curve]:
    """The finite values of one trial by metric, against the images it has seen, `images` in a pass.

    Raises:
        DataError: the file is no metrics.csv.
    """
    curves: dict[str, dict[float, float]] = defaultdict(dict)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file, strict=True):
                if line["split"] == f"trial{trial}":
                    passes, value = float(line["step"]) - trial * TRIAL_STEPS, float(line["value"])
                    if math.isfinite(value) and 0 <= passes < TRIAL_STEPS:
                        curves[line["metric"]][float(round(passes * images))] = value
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read ({reason}); left out of the learning curves") from error
    return dict(curves)
