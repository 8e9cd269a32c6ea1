"""One section for each dataset and backbone, averages over datasets first."""

from collections.abc import Iterable, Sequence

from clipkal.report.against import Baseline, Comparison, against
from clipkal.report.aggregate import Row
from clipkal.report.collect import Run
from clipkal.report.flags import flags
from clipkal.report.metric import METRICS
from clipkal.report.table import (
    Section,
    cost,
    families,
    metric_tables,
    note_of,
    others_of,
    overview,
    title_of,
)


def sections(
    rows: Sequence[Row],
    runs: Sequence[Run] = (),
    baseline: Baseline | None = None,
    compared: Iterable[Comparison] = (),
) -> list[Section]:
    """What the report says of rows that come sorted; `compared` are the differences to the baseline."""
    made = list(compared)
    return [_section(family, runs, baseline, made) for family in families(rows).values()]


def _section(
    rows: list[Row], runs: Sequence[Run], baseline: Baseline | None, compared: Sequence[Comparison]
) -> Section:
    average = not any(row.facts for row in rows)  # no single sets: the overview says it all
    return Section(
        title_of(rows),
        note_of(rows),
        flags(rows, runs),
        overview(rows),
        against(rows, compared, baseline) if baseline else None,
        [] if average else metric_tables(rows, METRICS),
        metric_tables(rows, others_of(rows)),
        cost(rows),
    )
