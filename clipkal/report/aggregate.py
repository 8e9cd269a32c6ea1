"""From runs to rows: one choice over several seeds becomes one row of means with confidence intervals."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from clipkal.report.collect import Run
from clipkal.report.labels import given_to_all, labels_of, places_of
from clipkal.report.values import (
    ID,
    MEAN_OOD,
    MEAN_TRANSFER,
    NEW,
    H,
    predictives_of,
    values_of,
)
from clipkal.tracking.reported import SCALED, reported


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and the half-width of its 95 % confidence interval (None for one seed or an infinite value).

    `values` are those of the single `seeds`, in their order.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]
    seeds: tuple[Any, ...] = ()


@dataclass
class Row:
    """One line of a table.

    Attributes:
        dataset: as in the run, with the domain that was learnt from where there are several ("pacs from photo").
        backbone, method, shots: as in the run; shots is a string, "all" included.
        label: the method, with whatever else tells it from other runs of that method.
        predictive: as in results.json; `reported` marks the one that stands for the method.
        trained: False for zero-shot, where the shots do not matter.
        seeds: the seeds averaged over.
        run_ids: their runs; empty for an average over datasets or domains.
        values: (set, metric) -> Estimate, with the sets "ID", each OOD and transfer set by name, what of
            `OVERALL` there is, and `COST`.
        facts: set -> {role, n, classes, bins}.
        parts: of an average over datasets or domains, the rows it is made of.
        whole: the dataset as in the run.
    """

    dataset: str
    backbone: str
    method: str
    label: str
    predictive: str
    reported: bool
    trained: bool
    shots: str
    seeds: list[Any]
    run_ids: list[str]
    values: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: list["Row"] = field(default_factory=list)
    whole: str = ""

    @property
    def scaled(self) -> bool:
        """Whether the predictive has a fitted temperature."""
        return self.predictive.endswith(SCALED)

    def named(self, role: str) -> list[str]:
        """Names of the sets with a role ("id", "ood", "transfer"), in the order of the run."""
        return [name for name, fact in self.facts.items() if fact["role"] == role]

    @property
    def parts_are(self) -> str:
        """What an average is over."""
        return "datasets" if len({part.whole for part in self.parts}) > 1 else "source domains"

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts rows by dataset, backbone, shots, method and predictive."""
        return (
            self.dataset,
            self.backbone,
            shots_rank(self.shots),
            self.label,
            not self.reported,
            self.scaled,
            self.predictive.removesuffix(SCALED) == "plugin",
            self.predictive,
        )


def shots_rank(shots: str) -> float:
    """Numbers in their order, "all" last."""
    return float(shots) if re.fullmatch(r"\d+", shots) else math.inf


def estimate(values: Sequence[float], seeds: Sequence[Any] = ()) -> Estimate:
    """Mean ± t₀.₉₇₅ · s / √n with Student's t for n − 1 degrees of freedom, over seeds (n ≥ 1 values)."""
    mean = sum(values) / len(values)  # plain sums: for a few numbers numpy takes ten times as long
    if len(values) < 2 or not math.isfinite(mean):
        return Estimate(mean, None, tuple(values), tuple(seeds))
    spread = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1) / len(values))
    return Estimate(mean, _t975(len(values) - 1) * spread, tuple(values), tuple(seeds))


@lru_cache
def _t975(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))


def aggregate(runs: Iterable[Run]) -> list[Row]:
    """One row per dataset (and domain learnt from), backbone, method (and what else differs), shots and predictive, over seeds.

    A mean over OOD or transfer sets is the mean of one run's sets, then averaged over seeds; a run that lacks
    a set that others of the same dataset and backbone have gets none. H is of one run, too.
    """
    families: dict[tuple[str, str], list[Run]] = defaultdict(list)
    every = list(runs)
    for run, place in zip(every, places_of(every), strict=True):
        families[place, str(run.run["backbone"])].append(run)
    known = given_to_all(every)
    rows = [row for (place, _), family in families.items() for row in _family_rows(place, family, known)]
    return sorted(rows, key=lambda row: row.order)


def _family_rows(place: str, family: list[Run], known: set[str]) -> Iterable[Row]:
    roles = {  # sets that were evaluated later do not count in the means, which other runs could not have
        name: str(one["role"]) for run in family for name, one in run.sets.items() if not one.get("later")
    }
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run, label in zip(family, labels_of(family, known), strict=True):
        groups[label, str(run.run["shots"])].append(run)
    for (label, shots), members in groups.items():
        for predictive in dict.fromkeys(p for run in members for p in predictives_of(run)):
            having = [run for run in members if predictive in predictives_of(run)]
            yield _row(place, label, shots, predictive, having, roles)


def _row(place: str, label: str, shots: str, predictive: str, runs: list[Run], roles: dict[str, str]) -> Row:
    runs = sorted(runs, key=lambda run: str(run.run["seed"]))
    about = runs[0].run
    row = Row(
        dataset=place,
        whole=str(about["dataset"]),
        backbone=str(about["backbone"]),
        method=str(about["method"]),
        label=label,
        predictive=predictive,
        reported=predictive == reported(predictives_of(runs[0])),
        trained=str(about["optimizer"]) != "none",
        shots=shots,
        seeds=[run.run["seed"] for run in runs],
        run_ids=[run.run_id for run in runs],
    )
    collected: dict[tuple[str, str], list[tuple[float, Any]]] = defaultdict(list)
    for run in runs:
        values = values_of(run, predictive)
        for key, value in (values | _overall(values, roles)).items():
            collected[key].append((value, run.run["seed"]))
        row.facts |= _facts(run, predictive)
    row.values = {key: estimate(*zip(*pairs, strict=True)) for key, pairs in collected.items()}
    return row


def _overall(values: dict[tuple[str, str], float], roles: dict[str, str]) -> dict[tuple[str, str], float]:
    """The means over OOD and transfer sets, and H, of one run; `roles` are those of every set in its family."""
    ood = [name for name, role in roles.items() if role == "ood"]
    transfer = [name for name, role in roles.items() if role == "transfer" and name != NEW]
    found = _mean(MEAN_OOD, ood, values) | _mean(MEAN_TRANSFER, transfer, values)
    base, new = values.get((ID, "accuracy")), values.get((NEW, "accuracy"))
    if roles.get(NEW) == "transfer" and base is not None and new is not None:
        found[H, "accuracy"] = 2 * base * new / (base + new) if base + new else 0.0
    return found


def _mean(
    title: str, names: Sequence[str], values: dict[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """The mean over the sets `names` of each metric that all of them have."""
    means = {}
    for metric in dict.fromkeys(metric for name, metric in values if name in names):
        parts = [values[name, metric] for name in names if (name, metric) in values]
        if len(parts) == len(names):
            means[title, metric] = float(np.mean(parts))
    return means


def _facts(run: Run, predictive: str) -> dict[str, dict[str, Any]]:
    return {
        (ID if one["role"] == "id" else name): {"role": one["role"]}
        | {key: metrics.get(key) for key in ("n", "classes", "bins")}
        for name, one in run.sets.items()
        if (metrics := one["predictive"].get(predictive)) is not None
    }
