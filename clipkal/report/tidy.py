"""Every number as tidy CSV, unrounded and in the units of results.json: for pandas or R."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from clipkal.report.against import Comparison
from clipkal.report.aggregate import Row

WHO = ("dataset", "backbone", "method", "label", "predictive", "reported", "shots")
MEANS = (*WHO, "set", "metric", "mean", "ci95", "seeds", "seed_list")
SEEDS = (*WHO, "set", "metric", "seed", "value")
PAIRED = (
    *(*WHO, "set", "metric", "baseline", "difference", "ci95", "seeds", "seed_list"),
    *("pairs", "wins", "ties", "losses", "p_sign", "p_wilcoxon", "p_holm"),
)


def means_csv(rows: Iterable[Row]) -> str:
    """One line per row, set and metric; ci95 is a half-width."""
    return _written(MEANS, (line for row in rows for line in _means(row)))


def seeds_csv(rows: Iterable[Row]) -> str:
    """One line per row, set, metric and seed."""
    return _written(SEEDS, (line for row in rows for line in _seeds(row)))


def paired_csv(comparisons: Iterable[Comparison]) -> str:
    """One line per row, set and metric that the baseline has too; `difference` is the row minus the baseline.

    The pairs, on which wins and tests are counted, are seeds, and datasets where the dataset is an average.
    """
    return _written(PAIRED, (_paired(one) for one in comparisons))


def _written(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(one) if isinstance(one, str) else one for one in line] for line in lines)
    return file.getvalue()


def _cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula: behind an apostrophe where it begins like one."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _who(row: Row) -> list[Any]:
    return [row.dataset, row.backbone, row.method, row.label, row.predictive, row.reported, row.shots]


def _means(row: Row) -> Iterator[list[Any]]:
    for (name, metric), value in row.values.items():
        half = "" if value.half_width is None else value.half_width
        yield [*_who(row), name, metric, value.mean, half, len(value.values), _listed(value.seeds)]


def _seeds(row: Row) -> Iterator[list[Any]]:
    for (name, metric), value in row.values.items():
        for seed, one in zip(value.seeds, value.values, strict=True):
            yield [*_who(row), name, metric, str(seed), one]


def _paired(one: Comparison) -> list[Any]:
    found = one.found
    half = "" if found.estimate.half_width is None else found.estimate.half_width
    seeds = found.estimate.seeds
    return [
        *(*_who(one.row), one.name, one.metric.key, f"{one.base.label}:{one.base.predictive}"),
        *(found.estimate.mean, half, len(seeds), _listed(seeds)),
        *(found.pairs, found.wins, found.ties, found.losses, found.p_sign, found.p_wilcoxon, one.p_holm),
    ]


def _listed(seeds: Iterable[Any]) -> str:
    return " ".join(map(str, seeds))
