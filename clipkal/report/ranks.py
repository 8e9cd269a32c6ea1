"""Average ranks over many datasets, and how far apart they must be (Demšar 2006, JMLR 7, "Statistical comparisons …")."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from clipkal.report.aggregate import Row
from clipkal.report.metric import Metric

FEWEST = 5
"""Datasets from which on ranks are shown; with fewer, no difference of ranks is beyond chance."""


@dataclass(frozen=True)
class Ranks:
    """Methods from the best to the worst.

    Attributes:
        labels: the methods; ranks: their average ranks, 1 the best, ties shared.
        datasets: how many were averaged over.
        critical: the difference of two average ranks that is beyond chance at 5 % (Nemenyi), for all pairs at once.
        p_friedman: of the hypothesis that all methods are the same.
    """

    labels: list[str]
    ranks: list[float]
    datasets: int
    critical: float
    p_friedman: float


def ranks(rows: Sequence[Row], name: str, metric: Metric) -> Ranks | None:
    """The ranks of averages over datasets (`Row.parts`), each dataset's value the mean over its seeds.

    Args:
        rows: of one backbone and number of shots, one a method.
        name: the set.
        metric: one with a good end.

    Returns:
        None with fewer than `FEWEST` datasets or three methods that have the value in each of them.
    """
    key = (name, metric.key)
    there = [row for row in rows if row.parts and all(key in part.values for part in row.parts)]
    datasets = [part.dataset for part in there[0].parts] if there else []
    if len(there) < 3 or len(datasets) < FEWEST:
        return None
    values = [[_of(row, dataset).values[key].mean for row in there] for dataset in datasets]
    return rank(np.array(values), [row.label for row in there], bool(metric.higher_is_better))


def _of(row: Row, dataset: str) -> Row:
    return next(part for part in row.parts if part.dataset == dataset)


def rank(values: np.ndarray, labels: Sequence[str], higher_is_better: bool) -> Ranks:
    """Ranks from values [datasets, methods], at least three methods."""
    places = stats.rankdata(-values if higher_is_better else values, axis=1)
    average, order = places.mean(0), np.argsort(places.mean(0), kind="stable")
    with np.errstate(invalid="ignore"):  # NaN where all ranks are the same
        p = float(stats.friedmanchisquare(*places.T).pvalue)
    return Ranks(
        [labels[i] for i in order],
        [float(average[i]) for i in order],
        len(values),
        critical_difference(len(labels), len(values)),
        1.0 if math.isnan(p) else p,
    )


def critical_difference(methods: int, datasets: int) -> float:
    """Nemenyi's CD = q₀.₀₅ √(k(k + 1) / 6N), q from the studentised range with infinite degrees of freedom over √2."""
    q = float(stats.studentized_range.ppf(0.95, methods, np.inf)) / 2**0.5
    return float(q * (methods * (methods + 1) / (6 * datasets)) ** 0.5)
