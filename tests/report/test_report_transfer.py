"""Transfer sets in a report: columns of their own, their own mean, and H of base and new classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_run

from clipkal.report.aggregate import ID, MEAN_OOD, MEAN_TRANSFER, NEW, H, Row, aggregate
from clipkal.report.averages import over_datasets
from clipkal.report.collect import collect
from clipkal.report.command import report
from clipkal.report.metric import METRICS
from clipkal.report.section import sections
from clipkal.report.table import HEAD, build, overview

SEEDS = (1, 2, 3)


def runs(root: Path, sets: tuple[str, ...], **choices: object) -> None:
    for seed in SEEDS:
        write_run(root, seed=seed, sets=sets, n=60, **choices)


def row_of(root: Path) -> Row:
    return next(row for row in aggregate(collect([root]).runs) if row.reported)


def accuracies(root: Path, name: str) -> np.ndarray:
    """Of the reported predictive, by seed."""
    paths = sorted(root.rglob("results.json"))
    contents = [json.loads(path.read_text()) for path in paths]
    return np.array([one["sets"][name]["predictive"]["sampled"]["accuracy"] for one in contents])


def test_h_is_the_harmonic_mean_of_each_seed(tmp_path: Path) -> None:
    runs(tmp_path, ("test", "sketch", "new"))
    base, new = accuracies(tmp_path, "test"), accuracies(tmp_path, "new")
    by_hand = 2 * base * new / (base + new)
    row = row_of(tmp_path)
    found = row.values[H, "accuracy"]
    assert found.values == pytest.approx(tuple(by_hand))
    low, high = stats.ttest_1samp(by_hand, 0).confidence_interval(0.95)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert row.values[NEW, "accuracy"].values == pytest.approx(tuple(new))
    assert row.values[MEAN_OOD, "accuracy"].values == row.values["sketch", "accuracy"].values
    assert (H, "nll") not in row.values and (MEAN_TRANSFER, "accuracy") not in row.values
    assert build([row], METRICS[0]).header == [*HEAD, "ID", "sketch", "new", "H"]
    assert build([row], METRICS[1]).header == [*HEAD, "ID", "sketch", "new"]
    assert [name for name in overview([row]).header if name.startswith("Acc")] == [
        "Acc. % ID",
        "Acc. % OOD",
        "Acc. % new",
        "Acc. % H",
    ]


def test_other_datasets_have_a_mean_of_their_own(tmp_path: Path) -> None:
    runs(tmp_path, ("test", "sketch", "photo", "pets", "cars"))
    row = row_of(tmp_path)
    mean = np.mean([accuracies(tmp_path, name) for name in ("pets", "cars")], axis=0)
    assert row.values[MEAN_TRANSFER, "accuracy"].values == pytest.approx(tuple(mean))
    shifted = np.mean([accuracies(tmp_path, name) for name in ("sketch", "photo")], axis=0)
    assert row.values[MEAN_OOD, "accuracy"].values == pytest.approx(tuple(shifted))
    assert (H, "accuracy") not in row.values
    assert build([row], METRICS[0]).header == [
        *HEAD,
        *("ID", "sketch", "photo", "mean OOD", "pets", "cars", "mean transfer"),
    ]
    note = sections([row])[0].note
    assert "pets 60 / 6" in note and "cars 60 / 6" in note


def test_an_ood_set_called_new_is_no_new_half(tmp_path: Path) -> None:
    runs(tmp_path, ("test", "new"))
    for path in tmp_path.rglob("results.json"):
        path.write_text(path.read_text().replace('"transfer"', '"ood"'))
    assert (H, "accuracy") not in row_of(tmp_path).values


def test_base_new_and_h_are_averaged_over_datasets_seed_by_seed(tmp_path: Path) -> None:
    by_hand = []
    for dataset in ("dtd", "pets"):
        runs(tmp_path, ("test", "new"), dataset=dataset)
        base, new = (accuracies(tmp_path / dataset, name) for name in ("test", "new"))
        by_hand.append(2 * base * new / (base + new))
    (merged,) = (row for row in over_datasets(aggregate(collect([tmp_path]).runs)) if row.reported)
    assert {name for name, metric in merged.values if metric == "accuracy"} == {ID, NEW, H}
    assert merged.values[H, "accuracy"].values == pytest.approx(tuple(np.mean(by_hand, axis=0)))


def test_the_page_and_the_files_have_them(tmp_path: Path) -> None:
    runs(tmp_path / "runs", ("test", "sketch", "new", "pets", "cars"))
    report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert ">H</th>" in page and ">mean transfer</th>" in page and "harmonic mean" in page
    lines = (tmp_path / "out" / "table.csv").read_text(encoding="utf-8").splitlines()
    assert any(",H,accuracy," in line for line in lines)
    assert any(",mean transfer,nll," in line for line in lines)
