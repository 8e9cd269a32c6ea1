"""Rows: the right runs together, the right mean and interval, the right name."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import write_run

from clipkal.report.aggregate import ID, MEAN_OOD, aggregate, estimate, shots_rank
from clipkal.report.averages import over_datasets
from clipkal.report.collect import collect
from clipkal.report.labels import given_to_all


def test_estimate_is_the_textbook_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = estimate(values)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert estimate([0.5]).half_width is None
    assert estimate([0.5, math.inf]).mean == math.inf and estimate([0.5, math.inf]).half_width is None
    assert estimate([0.5, 0.5]).half_width == 0


def test_groups_by_dataset_method_shots_and_predictive(outputs: Path) -> None:
    rows = aggregate(collect([outputs]).runs)
    digits = [row for row in rows if row.dataset == "digits"]
    found = {(row.label, row.predictive, row.shots): row for row in digits}
    kinds = [("zeroshot", "plugin"), ("adamw", "plugin"), ("adamw", "plugin_scaled")]
    kinds += [("kalman", "sampled"), ("kalman", "plugin")]
    assert set(found) == {(*kind, shots) for kind in kinds for shots in ("1", "16")}
    assert all(row.seeds == [1, 2, 3] for row in rows)
    assert found["kalman", "sampled", "1"].reported and not found["kalman", "plugin", "1"].reported
    assert found["adamw", "plugin", "1"].reported and not found["adamw", "plugin_scaled", "1"].reported
    assert [row.shots for row in digits] == ["1"] * 5 + ["16"] * 5


def test_values_come_from_results_json(outputs: Path) -> None:
    row = next(
        r for r in aggregate(collect([outputs / "digits"]).runs) if r.label == "kalman" and r.shots == "16"
    )
    folders = [outputs / f"digits/mini/kalman/16shot-seed{seed}" for seed in (1, 2, 3)]
    contents = [json.loads((folder / "results.json").read_text()) for folder in folders]

    def values(name: str, metric: str) -> list[float]:
        return [content["sets"][name]["predictive"]["sampled"][metric] for content in contents]

    assert row.values[ID, "nll"].values == tuple(values("test", "nll"))
    assert row.values["sketch", "ece"].mean == pytest.approx(np.mean(values("sketch", "ece")))
    means = np.mean([values("sketch", "accuracy"), values("photo", "accuracy")], axis=0)
    assert row.values[MEAN_OOD, "accuracy"].values == pytest.approx(tuple(means))
    assert row.named("ood") == ["sketch", "photo"]
    assert row.facts[ID] == {"role": "id", "n": 60, "classes": 6, "bins": 15}
    auroc = [content["detection"]["photo"]["mutual_information"]["auroc"] for content in contents]
    assert row.values["photo", "auroc_mutual_information"].values == tuple(auroc)


def test_detection_of_the_plugin_belongs_to_the_plugin_row(outputs: Path) -> None:
    rows = aggregate(collect([outputs / "digits"]).runs)
    plugin = next(row for row in rows if (row.label, row.predictive) == ("kalman", "plugin"))
    assert ("photo", "auroc_msp") in plugin.values and (
        "photo",
        "auroc_mutual_information",
    ) not in plugin.values


def test_null_nll_is_infinite(tmp_path: Path) -> None:
    path = write_run(tmp_path, n=20) / "results.json"
    content = json.loads(path.read_text())
    content["sets"]["test"]["predictive"]["sampled"]["nll"] = None
    path.write_text(json.dumps(content))
    assert aggregate(collect([tmp_path]).runs)[0].values[ID, "nll"].mean == math.inf


def test_a_missing_ood_set_leaves_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, seed=1)
    write_run(tmp_path, n=20, seed=2, sets=("test", "sketch"))
    row = aggregate(collect([tmp_path]).runs)[0]
    assert len(row.values[ID, "accuracy"].values) == 2
    assert len(row.values["photo", "accuracy"].values) == 1
    assert len(row.values[MEAN_OOD, "accuracy"].values) == 1


def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, adapter="linear")
    write_run(tmp_path, n=20, adapter="lora", folder="4shot-seed1,adapter=lora")
    write_run(tmp_path, n=20, seed=2, folder="4shot-seed2,optimizer.scale=frozen")
    said = {"folder": "4shot-seed3--optimizer.prior-1", "overrides": ["adapter=linear", "optimizer.prior=1"]}
    write_run(tmp_path, n=20, seed=3, **said)
    assert {row.label for row in aggregate(collect([tmp_path]).runs)} == {
        "kalman (adapter=linear)",
        "kalman (adapter=lora)",
        "kalman (adapter=linear, optimizer.scale=frozen)",  # of clipkal 0.1, which had it in the path only
        "kalman (adapter=linear, optimizer.prior=1)",
    }


def test_what_all_runs_were_given_names_a_row_only_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, overrides=["dataset.ood=null"])
    assert {row.label for row in aggregate(collect([tmp_path]).runs)} == {"kalman (dataset.ood=null)"}
    write_run(tmp_path, n=20, method="adamw", overrides=["dataset.ood=null"])
    runs = collect([tmp_path]).runs
    assert {row.label for row in aggregate(runs)} == {"kalman", "adamw"}
    assert given_to_all(runs) == {"dataset.ood=null"}
    write_run(tmp_path, n=20, dataset="other", overrides=["dataset.ood=null", "optimizer.prior=1"])
    write_run(tmp_path, n=20, dataset="third", method="adamw")
    labels = {row.label for row in aggregate(collect([tmp_path]).runs)}
    assert labels == {"kalman (dataset.ood=null)", "adamw (dataset.ood=null)", "adamw",
                      "kalman (dataset.ood=null, optimizer.prior=1)"}  # fmt: skip


def test_what_all_runs_of_an_experiment_share_names_no_row(tmp_path: Path) -> None:
    for seed, prior in ((1, []), (2, ["optimizer.prior=1"])):
        write_run(tmp_path, n=20, seed=seed, overrides=["experiment=coop", "optimizer.epochs=2", *prior])
    labels = {row.label for row in aggregate(collect([tmp_path]).runs)}
    assert labels == {"kalman", "kalman (optimizer.prior=1)"}
    write_run(tmp_path, n=20, seed=3, overrides=["experiment=grng", "optimizer.epochs=2"])
    labels = {row.label for row in aggregate(collect([tmp_path]).runs)}
    assert {
        "kalman (experiment=coop)",
        "kalman (experiment=grng)",
    } < labels


def test_the_same_seed_twice_under_one_name_shows_run_ids(tmp_path: Path) -> None:
    write_run(tmp_path / "a", n=20)
    write_run(tmp_path / "b", n=20, folder="renamed")
    labels = {row.label for row in aggregate(collect([tmp_path]).runs)}
    assert len(labels) == 2 and all(label.startswith("kalman [") for label in labels)


def test_shots_sort_as_numbers_with_all_last(tmp_path: Path) -> None:
    for shots in (16, 2, "all"):
        write_run(tmp_path, n=20, method="adamw", shots=shots)
    rows = aggregate(collect([tmp_path]).runs)
    assert [row.shots for row in rows if row.reported] == ["2", "16", "all"]
    assert shots_rank("all") == math.inf


def test_average_over_datasets(outputs: Path) -> None:
    rows = aggregate(collect([outputs]).runs)
    merged = over_datasets(rows)
    assert len(merged) == 10 and all(row.dataset == "average of 2 datasets" for row in merged)
    parts = [row for row in rows if (row.label, row.predictive, row.shots) == ("kalman", "sampled", "1")]
    whole = next(
        row for row in merged if (row.label, row.predictive, row.shots) == ("kalman", "sampled", "1")
    )
    per_seed = np.mean([row.values[ID, "accuracy"].values for row in parts], axis=0)
    assert whole.values[ID, "accuracy"].values == pytest.approx(tuple(per_seed))
    assert {name for name, _ in whole.values} == {ID, MEAN_OOD}
    assert over_datasets([row for row in rows if row.dataset == "digits"]) == []


def test_average_over_datasets_leaves_out_incomplete_methods_and_seeds(tmp_path: Path) -> None:
    for dataset, method, seed in [
        ("a", "kalman", 1),
        ("a", "kalman", 2),
        ("b", "kalman", 2),
        ("a", "adamw", 1),
    ]:
        write_run(tmp_path, n=20, dataset=dataset, method=method, seed=seed)
    merged = over_datasets(aggregate(collect([tmp_path]).runs))
    assert {row.label for row in merged} == {"kalman"} and merged[0].seeds == [2]
