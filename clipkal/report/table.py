"""Tables of rows: which columns, which text in each cell, which cells stand out."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from clipkal.report.aggregate import Estimate, Row
from clipkal.report.metric import METRICS, Metric, cost_metrics, other_metrics
from clipkal.report.paired import best_of, level_with
from clipkal.report.values import COST, ID, MEAN_OOD, MEAN_TRANSFER, OVERALL, H

HEAD = ("method", "predictive", "shots", "seeds")
Columns = Sequence[tuple[str, Metric, str]]
"""(header, metric, set) of each column."""


@dataclass
class Table:
    """Text cells under a header.

    Attributes:
        title, note: above and below it.
        header, cells: texts; the first columns are those of `HEAD`.
        best: (row, column) of the cells to emphasise.
        top: those with the best mean.
        worse: those that say that something is clearly worse.
        breaks: the rows before which the number of shots changes.
        folded: the rows that a page may fold away, those with a fitted temperature.
    """

    title: str
    header: list[str]
    note: str = ""
    cells: list[list[str]] = field(default_factory=list)
    best: set[tuple[int, int]] = field(default_factory=set)
    top: set[tuple[int, int]] = field(default_factory=set)
    worse: set[tuple[int, int]] = field(default_factory=set)
    breaks: set[int] = field(default_factory=set)
    folded: set[int] = field(default_factory=set)

    def begin(self, row: Row, seeds: int) -> None:
        """Appends a line with its first cells, `HEAD`."""
        index = len(self.cells)
        if index and row.shots != self.cells[-1][2]:
            self.breaks.add(index)
        if row.scaled:
            self.folded.add(index)
        self.cells.append([row.label, row.predictive, row.shots, str(seeds)])


@dataclass
class Section:
    """What the report says of one dataset and backbone.

    Attributes:
        title, note: its name, and what the numbers are computed over.
        flags: what makes rows hard to compare, a sentence each.
        overview: the headline figures.
        against: differences to the baseline; None where there is none.
        tables: one per metric, with every set; others: the same for the further metrics.
        cost: what training cost, beside how good the result is.
    """

    title: str
    note: str
    flags: list[str]
    overview: Table
    against: Table | None
    tables: list[Table]
    others: list[Table]
    cost: Table | None

    def main(self) -> list[Table]:
        """The tables that are always shown."""
        return [table for table in (self.overview, self.against) if table]

    def usual(self) -> list[Table]:
        """All but those of the further metrics."""
        return [*self.main(), *self.tables, *([self.cost] if self.cost else [])]


LEGEND = (
    "Mean ± 95 % confidence interval over seeds (Student t); one seed has no interval. Bold: for the same number of shots "
    "not distinguishable from the best mean, by a paired t-test at 5 % over the seeds that the two rows share (Welch where "
    "they share none; the best mean alone where there is one seed), without a correction for the number of rows; with two "
    "or three seeds it can tell little apart. Underlined, where the format has it: the best mean. A method's reported "
    "predictive comes first; plugin is the softmax at the mean parameters, and _scaled has a temperature fitted on "
    "validation images. Transfer sets have classes of their own, of which nothing was learnt; H is the harmonic mean of "
    "the accuracies on base (ID) and new classes. Sets that clipkal-evaluate added have a column each and count in no mean."
)


def families(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by dataset and backbone."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.dataset, row.backbone].append(row)
    return found


def title_of(rows: Sequence[Row]) -> str:
    """What a section is called."""
    return f"{rows[0].dataset} · {rows[0].backbone}"


def metric_tables(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[Table]:
    """A table for each metric that any of the rows has."""
    return [table for metric in metrics if (table := build(rows, metric)).cells]


def others_of(rows: Sequence[Row]) -> list[Metric]:
    """The metrics of the rows beside the three of the overview."""
    return other_metrics([row.values for row in rows])


def build(rows: Sequence[Row], metric: Metric) -> Table:
    """One metric of rows that share dataset and backbone; rows and columns without any value are left out.

    Its columns: ID, each OOD set, mean OOD, each transfer set, mean transfer and H.
    """
    rows = [row for row in rows if any(key == metric.key for name, key in row.values if name != COST)]
    if metric.key == "accuracy":  # a temperature does not change the argmax of a plug-in
        rows = [row for row in rows if row.predictive != "plugin_scaled"]
    names = [ID, *_group(rows, "ood", MEAN_OOD), *_group(rows, "transfer", MEAN_TRANSFER), H]
    if not any(row.facts for row in rows):
        names = list(OVERALL)
    columns = [name for name in names if any((name, metric.key) in row.values for row in rows)]
    return filled(metric.title, rows, [(name, metric, name) for name in columns])


def _group(rows: Sequence[Row], role: str, mean: str) -> list[str]:
    """The sets of a role and their mean, which of one set says nothing more."""
    names = list(dict.fromkeys(name for row in rows for name in row.named(role)))
    return names if len(names) == 1 else [*names, mean]


def overview(rows: Sequence[Row]) -> Table:
    """Accuracy, NLL and ECE, each on ID, as the means over the OOD and the transfer sets, and on new classes."""
    return filled("Overview (OOD: mean over the OOD sets)", rows, overview_columns(rows))


def overview_columns(rows: Sequence[Row]) -> Columns:
    """The columns of an overview: the three metrics by `OVERALL`, as far as there are values."""
    return [
        (f"{m.short} {name.removeprefix('mean ')}", m, name)
        for m in METRICS
        for name in OVERALL
        if any((name, m.key) in row.values for row in rows)
    ]


def cost(rows: Sequence[Row]) -> Table | None:
    """What the training of each method cost, beside its accuracy and NLL; None where no run has recorded it."""
    rows = [row for row in rows if row.reported]
    metrics = cost_metrics([row.values for row in rows])
    quality = [one for one in overview_columns(rows) if one[1].key in ("accuracy", "nll")]
    columns = [(metric.title, metric, COST) for metric in metrics] + quality
    table = filled("Cost beside quality", rows, columns)
    table.note = _COST
    first = len(HEAD) + len(metrics)  # what is cheap is not yet good
    table.best = {place for place in table.best if place[1] >= first}
    table.top = {place for place in table.top if place[1] >= first}
    return table if metrics else None


_COST = (
    "Seconds and passes are those of learning, over all learning rates that were tried. Memory is the most that was resident in "
    "the process while the run went, with all that was loaded, and with what jobs of a sweep keep for one another; on a GPU the "
    "most that was allocated there."
)


def filled(title: str, rows: Sequence[Row], columns: Columns) -> Table:
    """Cells of the columns for the rows, with breaks and the cells not distinguishable from the best."""
    table = Table(title, [*HEAD, *(header for header, _, _ in columns)])
    for row in rows:
        table.begin(row, len(row.seeds))
        table.cells[-1] += [shown(row.values.get((name, m.key)), m) for _, m, name in columns]
    for shots in dict.fromkeys(row.shots for row in rows):
        places = [i for i, row in enumerate(rows) if row.shots == shots]
        for column, (_, metric, name) in enumerate(columns, len(HEAD)):
            some = [rows[i] for i in places]
            top = best_of(some, name, metric)
            if top is not None:
                table.top.add((places[top], column))
                table.best |= {(places[i], column) for i in level_with(some, top, name, metric)}
    return table


def shown(estimate: Estimate | None, metric: Metric, sign: str = "") -> str:
    """`71.3 ± 0.8`, `71.3` for one seed, `∞`, or `–` where there is none; sign="+" writes the sign of a difference."""
    if estimate is None or math.isnan(estimate.mean):
        return "–"
    if math.isinf(estimate.mean):
        return "−∞" if estimate.mean < 0 else f"{sign}∞"
    text = f"{estimate.mean * metric.factor:{sign}.{metric.decimals}f}".replace("-", "−")
    if estimate.half_width is None or (not metric.decimals and estimate.half_width < 0.5):  # of a count
        return text
    return f"{text} ± {estimate.half_width * metric.factor:.{metric.decimals}f}"


def note_of(rows: Sequence[Row]) -> str:
    """What the figures depend on: images and classes of each set, and the bins of the ECE."""
    facts: dict[str, set[tuple[object, object]]] = defaultdict(set)
    bins = set()
    for row in rows:
        for name, fact in row.facts.items():
            facts[name].add((fact["n"], fact["classes"]))
            bins.add(fact["bins"])
    averaged = next((row for row in rows if row.parts), None)
    sizes = ", ".join(
        f"{name} " + " or ".join(f"{n} / {c}" for n, c in sorted(pairs)) for name, pairs in facts.items()
    )
    if averaged:
        single = " A set's column is the mean over the domains that are tested on it." * bool(sizes)
        return f"Each seed's value is the mean over the {averaged.parts_are}; rows that lack one are left out.{single}"
    widths = " or ".join(map(str, sorted(bins)))
    return f"Images / classes: {sizes}. ECE over the full set with {widths} equal-width bins."
