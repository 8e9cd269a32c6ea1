"""Differences seed by seed: their interval, their tests, and what they call distinguishable."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipkal.report.aggregate import Row, estimate
from clipkal.report.metric import METRICS
from clipkal.report.paired import best_of, difference, holm, level_with, wilcoxon
from clipkal.report.values import ID

ACCURACY, NLL, _ = METRICS
NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 3))


def row(values: Sequence[float], seeds: Sequence[object] = (), label: str = "a", **choices: object) -> Row:
    """A row with the same values as accuracy and as NLL on ID."""
    seeds = list(seeds) or list(range(len(values)))
    about = {"dataset": "d", "backbone": "b", "method": label, "label": label, "predictive": "plugin"}
    about |= {"reported": True, "trained": True, "shots": "4", "seeds": seeds, "run_ids": []}
    found = estimate(values, seeds)
    return Row(**{**about, **choices}, values={(ID, "accuracy"): found, (ID, "nll"): found})  # type: ignore[arg-type]


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    ours, theirs = [0.81, 0.74, 0.90, 0.66], [0.78, 0.70, 0.88, 0.65]
    found = difference(row(ours), row(theirs), ID, ACCURACY)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.estimate.mean == pytest.approx((low + high) / 2)
    assert found.estimate.half_width == pytest.approx((high - low) / 2)
    assert (found.wins, found.ties, found.losses, found.pairs) == (4, 0, 0, 4)
    assert found.p_sign == found.p_wilcoxon == pytest.approx(2 / 2**4)
    assert found.clear == (low > 0)


def test_wins_follow_the_good_end_of_the_metric() -> None:
    found = [difference(row([3.0, 1, 2]), row([1.0, 1, 4]), ID, metric) for metric in (ACCURACY, NLL)]
    assert [(one.wins, one.ties, one.losses) for one in found] == [(1, 1, 1), (1, 1, 1)]
    lower = difference(row([1.0, 2]), row([2.0, 4]), ID, NLL)
    assert (lower.wins, lower.losses) == (2, 0) and lower.estimate.mean == -1.5


def test_only_shared_seeds_count() -> None:
    found = difference(row([1.0, 2, 9], [1, 2, 7]), row([5.0, 1, 0], [8, 2, 1]), ID, NLL)
    assert found.estimate.seeds == (1, 2) and found.estimate.values == (1.0, 1.0)
    assert difference(row([1.0], [1]), row([1.0], [2]), ID, NLL) is None
    assert difference(row([1.0]), row([2.0]), "sketch", NLL) is None


def test_what_learns_nothing_has_its_one_value_at_every_seed() -> None:
    zero = row([0.5], [1], trained=False)
    assert difference(row([0.6, 0.7], [3, 4]), zero, ID, ACCURACY).estimate.values == pytest.approx(
        (0.1, 0.2)
    )
    assert difference(zero, row([0.6, 0.7], [3, 4]), ID, ACCURACY).losses == 2
    assert difference(row([0.6], [3]), row([0.5], [1]), ID, ACCURACY) is None


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=2, max_size=6))
def test_what_all_methods_of_a_seed_share_does_not_matter(parts: list[tuple[float, float, float]]) -> None:
    ours, theirs, luck = map(list, zip(*parts, strict=True))
    plain = difference(row(ours), row(theirs), ID, NLL)
    shifted = [row([round(v + s, 3) for v, s in zip(values, luck, strict=True)]) for values in (ours, theirs)]
    found = difference(*shifted, ID, NLL)
    assert found.estimate.values == pytest.approx(plain.estimate.values, abs=1e-9)
    assert found.estimate.half_width == pytest.approx(plain.estimate.half_width, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-4, 4).map(float), max_size=8))
def test_the_signed_rank_test_is_scipys_with_every_sign_tried(differences: list[float]) -> None:
    moved = [d for d in differences if d]
    if len(moved) < 2:
        assert wilcoxon(differences) == 1
        return
    everything = stats.PermutationMethod(n_resamples=math.inf)
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(moved, method=everything).pvalue)


def test_the_signed_rank_test_of_many_and_of_infinite_pairs() -> None:
    many = [0.1 * i - 0.7 for i in range(1, 30)]
    assert wilcoxon(many) == pytest.approx(stats.wilcoxon([d for d in many if d]).pvalue)
    assert math.isnan(wilcoxon([math.inf, 1.0]))


def test_holm_is_the_published_adjustment() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )  # R: p.adjust(…, "holm")
    assert holm([]) == [] and holm([0.6, 0.7]) == [1.0, 1.0]


def test_an_average_over_datasets_is_tested_over_datasets_and_its_interval_is_over_seeds() -> None:
    from clipkal.report.averages import over_datasets

    rows = [
        row(
            [base + gain * (method == "b") + 0.1 * seed for seed in range(3)],
            label=method,
            dataset=f"d{index}",
        )
        for index, (base, gain) in enumerate([(0.1, 0.02), (0.3, 0.05), (0.2, -0.01)])
        for method in ("a", "b")
    ]
    averages = {one.label: one for one in over_datasets(rows)}
    found = difference(averages["b"], averages["a"], ID, ACCURACY)
    assert (found.wins, found.losses) == (2, 1) and found.pairs == 3
    assert found.estimate.mean == pytest.approx(0.02) and len(found.estimate.seeds) == 3


def test_a_steady_small_gain_is_told_apart_where_intervals_overlap() -> None:
    luck, gains = [0.10, 0.35, 0.62], ([0.010, 0.011, 0.012], [0, 0, 0], [0.02, -0.03, 0.02])
    best, steady, noisy = (row([x + d for x, d in zip(luck, gain, strict=True)]) for gain in gains)
    rows = [steady, best, noisy]
    assert best_of(rows, ID, ACCURACY) == 1
    assert level_with(rows, 1, ID, ACCURACY) == {1, 2}


def test_without_shared_seeds_welch_decides_and_with_one_seed_nothing_can_be_told() -> None:
    best, near, far = (
        row([5.0, 5.2, 5.1], [1, 2, 3]),
        row([5.0, 5.3, 4.9], [4, 5, 6]),
        row([3.0, 3.1, 3.2], [4, 5, 6]),
    )
    assert level_with([best, near, far], 0, ID, ACCURACY) == {0, 1}
    single = [row([0.70], [1]), row([0.69], [1]), row([0.7001], [1])]
    assert best_of(single, ID, ACCURACY) == 2
    assert level_with(single, 2, ID, ACCURACY) == {0, 2}  # 70.0 is printed for both
    assert best_of(single[:1], ID, ACCURACY) is None


def test_an_infinite_nll_is_worse_and_two_of_them_are_a_tie() -> None:
    finite, infinite = row([1.0, 1.1]), row([1.0, math.inf])
    assert level_with([finite, infinite], 0, ID, NLL) == {0}
    found = difference(infinite, infinite, ID, NLL)
    assert (found.wins, found.ties) == (0, 2) and found.estimate.mean == 0
    worse = difference(infinite, finite, ID, NLL)
    assert worse.losses == 1 and worse.estimate.mean == math.inf and not worse.clear
