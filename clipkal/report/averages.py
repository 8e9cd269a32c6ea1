"""Averages over the domains that one dataset is learnt from, and over datasets."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clipkal.report.aggregate import Estimate, Row, estimate
from clipkal.report.values import COST, OVERALL


def averages(rows: Iterable[Row]) -> list[Row]:
    """All averages: over datasets, where one of several domains counts as the average over them, and over each one's domains."""
    there = list(rows)
    domains = over_domains(there)
    split = {(row.whole, row.backbone) for row in domains}
    single = [row for row in there if (row.whole, row.backbone) not in split]
    return [*over_datasets([*domains, *single]), *domains]


def over_datasets(rows: Iterable[Row]) -> list[Row]:
    """Rows averaged over datasets, per backbone, where there are several; only methods that have every dataset.

    Each seed's values are averaged over datasets first, so the interval is one over seeds, as everywhere;
    seeds that a dataset lacks are left out. The OOD sets of different datasets differ: only `OVERALL` remain.
    """
    families: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.backbone].append(row)
    merged = (_averages(family, "average of {} datasets") for family in families.values())
    return sorted((row for one in merged for row in one), key=lambda row: row.order)


def over_domains(rows: Iterable[Row]) -> list[Row]:
    """Rows of one dataset averaged over the domains that are learnt from: what papers on its domains print.

    As `over_datasets`. Beside `OVERALL` each OOD set remains, as the mean over the domains that are tested on it.
    """
    families: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.whole, row.backbone].append(row)
    merged = (_averages(f, whole + ", average of {} source domains") for (whole, _), f in families.items())
    found = [row for one in merged for row in one]
    for row in found:
        _add_targets(row)
    return sorted(found, key=lambda row: row.order)


def _averages(family: Sequence[Row], title: str) -> list[Row]:
    places = {row.dataset for row in family}
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in family:
        groups[row.label, row.predictive, row.shots].append(row)
    complete = [group for group in groups.values() if len(group) == len(places) > 1]
    merged = (_merged(group, title.format(len(places))) for group in complete)
    return [row for row in merged if row is not None]


def _merged(group: list[Row], title: str) -> Row | None:
    seeds = [seed for seed in group[0].seeds if all(seed in row.seeds for row in group)]
    if not seeds:
        return None
    row = replace(group[0], dataset=title, seeds=seeds, run_ids=[], values={}, facts={}, parts=group)
    for key in group[0].values:
        if key[0] in (*OVERALL, COST):
            _average(row, key, group)
    return row


def _add_targets(row: Row) -> None:
    """The OOD sets of the parts, each as the mean over the parts that have it."""
    names = dict.fromkeys(name for part in row.parts for name in part.named("ood"))
    for name in names:
        having = [part for part in row.parts if name in part.facts]
        for key in having[0].values:
            if key[0] == name:
                _average(row, key, having)
        row.facts[name] = having[0].facts[name]


def _average(row: Row, key: tuple[str, str], parts: Sequence[Row]) -> None:
    """Puts the mean over the parts into the row, seed by seed, if every seed of every part has a value."""
    if all(len(part.values.get(key, _NONE).values) == len(part.seeds) for part in parts):
        values = [[part.values[key].values[part.seeds.index(seed)] for seed in row.seeds] for part in parts]
        row.values[key] = estimate(np.mean(values, axis=0).tolist(), row.seeds)


_NONE = Estimate(math.nan, None, ())
