"""Every method against one baseline: which row that is, and the table of paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from clipkal.errors import DataError
from clipkal.report.aggregate import Row, shots_rank
from clipkal.report.metric import METRICS, Metric
from clipkal.report.paired import Difference, difference, holm
from clipkal.report.table import HEAD, Table, others_of, overview_columns, shown

USUAL = ("adamw", "zeroshot")
"""The baseline where none is named: the first of these methods that there are runs of."""
FEWEST = 6
"""With fewer pairs no two-sided test of signs or ranks can reach 5 %, and a table leaves its p out."""


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline in one set and metric.

    `p_holm` is Wilcoxon's p, adjusted over the rows of the same shots: over what the methods report, and for the other
    predictives over those.
    """

    row: Row
    base: Row
    name: str
    metric: Metric
    found: Difference
    p_holm: float


@dataclass(frozen=True)
class Baseline:
    """What everything is compared with: a row's label, and a predictive (None: the one that it reports)."""

    label: str
    predictive: str | None = None

    def __str__(self) -> str:
        return self.label if self.predictive is None else f"{self.label}:{self.predictive}"

    def row_for(self, row: Row, rows: Sequence[Row]) -> Row | None:
        """The one of `rows` to compare `row` with: of the same shots, or of any where the baseline learns nothing."""
        mine = [one for one in rows if one.label == self.label and self._is(one)]
        same = [one for one in mine if one.shots == row.shots]
        return next(iter(same or [one for one in mine if not one.trained]), None)

    def _is(self, row: Row) -> bool:
        return row.reported if self.predictive is None else row.predictive == self.predictive


def baseline_of(rows: Sequence[Row], asked: str | None) -> Baseline | None:
    """The baseline among the rows of all datasets; None where none is asked for and none of `USUAL` is there.

    Args:
        rows: of all datasets.
        asked: a row's label or its method, for what it reports, or with ":" and a predictive.

    Raises:
        DataError: there is no such row, or there are rows of several labels.
    """
    labels = sorted({row.label for row in rows})
    if asked is None:
        return next((Baseline(name) for name in USUAL if name in labels), None)
    if asked in labels:
        return Baseline(asked)
    before, colon, after = asked.rpartition(":")
    name, predictive = (before, after) if colon else (asked, None)
    mine = [name] if name in labels else sorted({row.label for row in rows if row.method == name})
    there = sorted({row.predictive for row in rows if row.label in mine})
    if len(mine) == 1 and (predictive is None or predictive in there):
        return Baseline(mine[0], predictive)
    if len(mine) == 1:
        raise DataError(f"--baseline {asked}: {name} has no such predictive; it has {', '.join(there)}")
    several = f"there are {len(mine)} rows of {name}" if mine else "there are no runs of it"
    raise DataError(f"--baseline {asked}: {several}; name one of: {', '.join(mine or labels)}")


def comparisons(rows: Sequence[Row], baseline: Baseline | None) -> list[Comparison]:
    """All rows of one dataset and backbone against its baseline, in every set and metric that has a good end."""
    if baseline is None:
        return []
    metrics = {metric.key: metric for metric in (*METRICS, *others_of(rows))}
    found: list[Comparison] = []
    for shots in sorted({row.shots for row in rows}, key=shots_rank):
        some = [(row, baseline.row_for(row, rows)) for row in rows if row.shots == shots]
        pairs = [(row, base) for row, base in some if base is not None and base is not row]
        keys = dict.fromkeys(key for row, _ in pairs for key in row.values)
        for name, key in keys:
            if key in metrics and metrics[key].higher_is_better is not None:
                for reported in (True, False):
                    alike = [pair for pair in pairs if pair[0].reported == reported]
                    found += _column(alike, name, metrics[key])
    return found


def _column(pairs: Sequence[tuple[Row, Row]], name: str, metric: Metric) -> list[Comparison]:
    made = [(row, base, difference(row, base, name, metric)) for row, base in pairs]
    there = [Comparison(row, base, name, metric, found, 1.0) for row, base, found in made if found]
    adjusted = holm([one.found.p_wilcoxon for one in there])
    return [replace(one, p_holm=p) for one, p in zip(there, adjusted, strict=True)]


def against(rows: Sequence[Row], made: Sequence[Comparison], baseline: Baseline) -> Table | None:
    """The reported rows minus the baseline, in the columns of the overview; None where nothing can be compared."""
    columns = overview_columns(rows)
    by_cell = {(id(one.row), one.name, one.metric.key): one for one in made}
    pairs = next((row.parts_are for row in rows if row.parts), "seeds")
    table = Table(f"Against {baseline}: paired differences", [*HEAD, *(header for header, _, _ in columns)])
    table.note = _NOTE.format(pairs=pairs, baseline=baseline)
    for row in rows:
        cells = [by_cell.get((id(row), name, metric.key)) for _, metric, name in columns]
        if not row.reported or not any(cells):
            continue
        shared = max(len(one.found.estimate.seeds) for one in cells if one)
        table.begin(row, shared)
        table.cells[-1] += [_cell(one) for one in cells]
        for column, one in enumerate(cells, len(HEAD)):
            if one and one.found.clear:
                better = (one.found.estimate.mean > 0) == bool(one.metric.higher_is_better)
                (table.best if better else table.worse).add((len(table.cells) - 1, column))
    return table if table.cells else None


_NOTE = (
    "Each method minus {baseline}, over the seeds that both have: mean difference ± 95 % confidence interval (Student t). "
    "In brackets wins–ties–losses over {pairs}, and from six of them on the p-value of Wilcoxon’s signed-rank test, "
    "adjusted by Holm over the methods. Bold: better, and the interval leaves out zero."
)


def _cell(one: Comparison | None) -> str:
    if one is None:
        return "–"
    found = one.found
    text = f"{shown(found.estimate, one.metric, '+')} ({found.wins}–{found.ties}–{found.losses}"
    return f"{text}, p {_p(one.p_holm)})" if found.pairs >= FEWEST else f"{text})"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0") if value < 1 else "1"
