"""What a run leaves on disk: less with `keep`, the same run all the same, and a line that says what was left out."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from clipkal import load_run
from clipkal.app import run
from clipkal.config import compose
from clipkal.errors import CheckpointError
from clipkal.report import risk
from clipkal.tracking import RunDirectory
from clipkal.tracking.kept import LEFT_OUT

QUICK = [
    "dataset=digits",
    "dataset.ood=[noisy]",
    "tracking=disabled",
    "fewshot.shots=2",
    "data.progress=false",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run for every word of `keep`: its folder."""
    folder = tmp_path_factory.mktemp("kept")
    for keep in LEFT_OUT:
        run(compose([*QUICK, f"keep={keep}", f"output_dir={folder / keep}"]))
    return {keep: next((folder / keep).rglob("finished.json")).parent for keep in LEFT_OUT}


def names(path):
    return {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()}


def figures(path):
    found = json.loads((path / "results.json").read_text())
    return found["run_id"], found["sets"], found["detection"]


@pytest.mark.parametrize("keep", LEFT_OUT)
def test_a_run_leaves_out_what_keep_says_and_nothing_of_its_figures(runs, keep):
    assert names(runs["all"]) - names(runs[keep]) == set(LEFT_OUT[keep])
    assert names(runs[keep]) <= names(runs["all"])
    assert figures(runs[keep]) == figures(runs["all"])
    assert RunDirectory(runs[keep]).verify() == []


def test_a_finished_run_that_kept_less_is_skipped_and_says_what_it_lacks(runs, caplog):
    caplog.set_level("INFO", "clipkal")
    marker = runs["results"] / "finished.json"
    before = marker.stat().st_mtime_ns
    output = f"output_dir={runs['results'].parents[3]}"
    for keep, lacks in {"all": True, "results": False}.items():
        caplog.clear()
        run(compose([*QUICK, output, f"keep={keep}"]))
        assert "already finished" in caplog.text
        assert ("without adapter.safetensors and predictions.parquet" in caplog.text) is lacks
    assert marker.stat().st_mtime_ns == before


def test_what_needs_a_file_that_was_left_out_names_the_key(runs):
    there, features = load_run(runs["all"]), torch.randn(3, 128)
    model = load_run(runs["model"])
    assert torch.equal(model.predict_features(features).probs, there.predict_features(features).probs)
    for keep, use in {
        "results": lambda: load_run(runs["results"]).predict_features(features),
        "predictions": lambda: load_run(runs["predictions"]).predict_features(features),
        "model": lambda: model.threshold(0.1),
    }.items():
        with pytest.raises(CheckpointError, match=f"made with keep={keep}, which leaves out .*keep=all"):
            use()
    assert there.threshold(0.1) > 0


def test_a_report_tells_runs_without_predictions_that_were_not_to_keep_them(runs, tmp_path):
    asked = {keep: risk._left_out(path / "predictions.parquet") for keep, path in runs.items()}
    assert asked == {"all": False, "predictions": False, "model": True, "results": True}
    assert not risk._left_out(tmp_path / "predictions.parquet")


def test_predictions_are_packed_smaller_and_read_back_bit_for_bit(tmp_path):
    draw = np.random.default_rng(0)
    probs = draw.dirichlet(np.ones(10), 3000)
    table = pa.table(
        {
            "id": [f"test/{i}" for i in range(3000)],
            "label": draw.integers(0, 10, 3000),
            "confidence": probs.max(1),
            "probs": pa.array(list(probs.astype(np.float32)), pa.list_(pa.float32())),
            "novelty": pa.nulls(3000, pa.float64()),
        }
    )
    path = RunDirectory(tmp_path).write_predictions(table)
    assert parquet.read_table(path).equals(table)
    parquet.write_table(table, tmp_path / "plain", compression="zstd", use_dictionary=["id"])
    assert path.stat().st_size < 0.95 * (tmp_path / "plain").stat().st_size
