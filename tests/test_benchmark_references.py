"""The rows of the references' benchmark: every read-out of a reference once, from one training."""

import pandas as pd
import pytest

from benchmarks.references import REFERENCES, beds, printed, rows_of


@pytest.mark.parametrize("method", ["zeroshot", "ivon"])
def test_a_reference_gives_a_row_for_every_read_out(method, monkeypatch):
    reference = next(one for one in REFERENCES if one.method == method)
    if reference.package:
        pytest.importorskip(reference.package, reason=f"{reference.package} is not installed")
    monkeypatch.setattr("benchmarks.references.RATES", (0.1,))
    digits = next(one for one in beds(None) if one.name == "digits")
    rows = rows_of(digits, reference, 1, 1)
    names = [*reference.predictives, *(f"{name}_scaled" for name in reference.scaled)]
    assert [row["predictive"] for row in rows] == names
    for row in rows:
        assert 0.3 < row["id accuracy"] < 1 and 0 < row["ood nll"] < 10
    assert printed(pd.DataFrame(rows)).count("\n") == len(names) + 1
