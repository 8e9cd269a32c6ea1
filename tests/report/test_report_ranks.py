"""Average ranks and the critical difference, against Demšar's own example and scipy."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_run

from clipkal.report.aggregate import aggregate
from clipkal.report.averages import over_datasets
from clipkal.report.collect import collect
from clipkal.report.metric import METRICS
from clipkal.report.rank_view import rank_figure
from clipkal.report.ranks import critical_difference, rank, ranks
from clipkal.report.values import ID

# Demšar (2006), table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 datasets
AUC = """.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898
.936 .931 .916 .931  .661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875  1.000 1.000 1.000 1.000
.940 .962 .965 .962  .619 .666 .614 .669  .972 .981 .9751 .975  .957 .978 .946 .970"""


def test_demsars_example() -> None:
    values = np.array(list(map(float, AUC.split()))).reshape(14, 4)
    found = rank(values, ["plain", "m", "cf", "m+cf"], higher_is_better=True)
    assert found.labels == ["m+cf", "m", "cf", "plain"]
    assert found.ranks == pytest.approx([1.964, 2.0, 2.893, 3.143], abs=2e-3)
    assert found.critical == pytest.approx(1.25, abs=5e-3)
    assert found.p_friedman == pytest.approx(stats.friedmanchisquare(*values.T).pvalue)
    worst = rank(values, ["plain", "m", "cf", "m+cf"], higher_is_better=False)
    assert worst.ranks == pytest.approx([5 - r for r in found.ranks[::-1]])


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_demsars_table_5(methods: int, q: float) -> None:
    assert critical_difference(methods, methods * (methods + 1)) == pytest.approx(q / 6**0.5, abs=1e-3)


def test_methods_that_are_all_the_same_have_p_one() -> None:
    found = rank(np.ones((6, 3)), ["a", "b", "c"], True)
    assert found.ranks == [2, 2, 2] and found.p_friedman == 1


def test_ranks_need_datasets_and_methods_and_are_drawn(tmp_path: Path) -> None:
    for dataset in "abcde":
        for method in ("zeroshot", "adamw", "kalman"):
            write_run(tmp_path, n=30, dataset=dataset, method=method, sets=("test", "sketch", dataset))
    rows = over_datasets(aggregate(collect([tmp_path]).runs))
    reported = [row for row in rows if row.reported]
    found = ranks(reported, ID, METRICS[0])
    assert found is not None and found.datasets == 5 and sum(found.ranks) == pytest.approx(6)
    values = [[part.values[ID, "accuracy"].mean for part in row.parts] for row in reported]
    expected = stats.rankdata(-np.array(values), axis=0).mean(1)
    assert dict(zip(found.labels, found.ranks, strict=True)) == pytest.approx(
        {row.label: place for row, place in zip(reported, expected, strict=True)}
    )
    assert ranks(reported[:2], ID, METRICS[0]) is None
    figure = rank_figure(rows)
    assert figure is not None and len(figure.axes) == 6
    few = over_datasets(aggregate(collect([tmp_path / name for name in "abcd"]).runs))
    assert rank_figure(few) is None
