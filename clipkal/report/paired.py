"""Paired differences: two methods on the same seeds, whose shots and luck they share.

The spread over seeds is mostly that of the shots, which all methods of a seed have in common. The difference of two
methods, seed by seed, is free of it, and its interval is the honest one for "which is better?"; two overlapping
intervals of the methods alone say little.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from clipkal.report.aggregate import Estimate, Row, estimate
from clipkal.report.metric import Metric

LEVEL = 0.05
ENUMERATED = 13
"""Up to so many pairs the signed-rank test goes through all 2ⁿ signs; beyond, scipy chooses how."""

Key = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """One method minus another.

    Attributes:
        estimate: mean difference over the shared seeds, with its 95 % interval (Student's t).
        wins, ties, losses: of the pairs, judged by which end of the metric is good.
        p_sign, p_wilcoxon: two-sided p of the exact sign test (ties left out) and of Wilcoxon's signed-rank test over the
            pairs; 1 where all are ties.
        pairs: how many. They are seeds, and for an average over datasets or domains these, each a mean over its seeds, since
            seeds of one dataset are no independent evidence on other datasets (Demšar 2006).
    """

    estimate: Estimate
    wins: int
    ties: int
    losses: int
    p_sign: float
    p_wilcoxon: float

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        return self.wins + self.ties + self.losses

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero; for a single seed there is none, and nothing is clear."""
        half = self.estimate.half_width
        return half is not None and abs(self.estimate.mean) > half


def difference(row: Row, base: Row, name: str, metric: Metric) -> Difference | None:
    """`row` minus `base` in one set and metric over the seeds that both have; None without such a seed."""
    over_seeds = _differences(row, base, (name, metric.key))
    if not over_seeds:
        return None
    pairs = list(over_seeds.values())
    if row.parts:
        pairs = _over_parts(row, base, (name, metric.key))
    signs = np.sign(pairs) * (1 if metric.higher_is_better else -1)
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    return Difference(
        estimate(list(over_seeds.values()), list(over_seeds)),
        wins,
        len(pairs) - wins - losses,
        losses,
        _sign_test(wins, losses),
        wilcoxon(pairs),
    )


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (1945); zeros are left out, 1 where nothing is left, NaN for infinite ones.

    Up to `ENUMERATED` pairs it is exact, ties included: the share of all 2ⁿ signs that give as extreme a sum of signed ranks.
    """
    moved = [d for d in differences if d]
    if not moved or not all(map(math.isfinite, moved)):
        return 1.0 if not moved else math.nan
    if len(moved) > ENUMERATED:
        return float(stats.wilcoxon(moved).pvalue)
    if len({d > 0 for d in moved}) == 1:  # only these signs and their opposites are as extreme
        return 2.0 ** (1 - len(moved))
    ranks = stats.rankdata(np.abs(moved))
    sums, found = _signs(len(moved)) @ ranks, float(np.sign(moved) @ ranks)
    return float((np.abs(sums) >= abs(found) - 1e-9).mean())


@lru_cache
def _signs(n: int) -> np.ndarray:
    """All signs of n numbers, [2ⁿ, n]."""
    return np.array(list(itertools.product((-1, 1), repeat=n)), dtype=np.int8)


@lru_cache
def _sign_test(wins: int, losses: int) -> float:
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values (1979): controls the chance of any false finding among them."""
    order = np.argsort(p_values)
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def best_of(rows: Sequence[Row], name: str, metric: Metric) -> int | None:
    """The place of the best mean; None where fewer than two rows have a value, or the metric has no good end."""
    means = {
        i: row.values[name, metric.key].mean for i, row in enumerate(rows) if (name, metric.key) in row.values
    }
    means = {i: mean for i, mean in means.items() if not math.isnan(mean)}
    if len(means) < 2 or metric.higher_is_better is None:
        return None
    return (max if metric.higher_is_better else min)(means, key=lambda i: means[i])


def level_with(rows: Sequence[Row], top: int, name: str, metric: Metric) -> set[int]:
    """The places of the rows that are not distinguishable from the best one, at `top`, which is included.

    All rows are of one number of shots.

    Distinguishable is what differs from the best by a paired t-test at 5 % over shared seeds (by Welch's test where seeds
    are not shared), each row for itself, with no correction for their number. Where there is only one seed no test can be
    made, and the best mean stands alone, with what is printed the same.
    """
    key = (name, metric.key)
    there = [i for i, row in enumerate(rows) if key in row.values]
    return {i for i in there if i == top or _level(rows[i], rows[top], key, metric)}


def _level(row: Row, best: Row, key: Key, metric: Metric) -> bool:
    one, other = row.values[key], best.values[key]
    if _printed(one, metric) == _printed(other, metric):
        return True
    pairs = list(_differences(row, best, key).values())
    if len(pairs) > 1:
        found = estimate(pairs)
        return found.half_width is not None and abs(found.mean) <= found.half_width
    if min(len(one.values), len(other.values)) < 2 or math.isinf(one.mean) or math.isinf(other.mean):
        return False
    return bool(stats.ttest_ind(one.values, other.values, equal_var=False).pvalue > LEVEL)


def _printed(value: Estimate, metric: Metric) -> str:
    return f"{value.mean * metric.factor:.{metric.decimals}f}"


def _differences(row: Row, base: Row, key: Key) -> dict[Any, float]:
    """Seed -> `row` minus `base`."""
    ours, theirs = _by_seed(row, key, base), _by_seed(base, key, row)
    return {seed: _minus(ours[seed], theirs[seed]) for seed in ours if seed in theirs}


def _by_seed(row: Row, key: Key, other: Row) -> dict[Any, float]:
    """Seed -> value. What was never trained and has one value has it at every seed of the other."""
    value = row.values.get(key)
    if value is None:
        return {}
    if not row.trained and len(set(value.values)) == 1 and key in other.values:
        return dict.fromkeys([*value.seeds, *other.values[key].seeds], value.values[0])
    return dict(zip(value.seeds, value.values, strict=True))


def _minus(one: float, other: float) -> float:
    return 0.0 if one == other else one - other  # two infinite NLLs are a tie


def _over_parts(row: Row, base: Row, key: Key) -> list[float]:
    """For each dataset or domain the mean difference over its shared seeds."""
    theirs = {part.dataset: part for part in base.parts}
    pairs = [(part, theirs[part.dataset]) for part in row.parts if part.dataset in theirs]
    found = [list(_differences(one, other, key).values()) for one, other in pairs]
    return [float(np.mean(values)) for values in found if values]
