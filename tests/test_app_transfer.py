"""Runs that are tested on other classes than they learnt: base-to-new, and other datasets."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from whole_runs import QUICK, coloured_images, execute

from clipkal import cli
from clipkal.app import few_shot_task
from clipkal.config import compose
from clipkal.data.drawing import others
from clipkal.errors import ConfigError
from clipkal.report.aggregate import H, aggregate
from clipkal.report.collect import collect
from clipkal.tracking.tensors import read_tensors

DIGITS = [*QUICK, "dataset=digits", "dataset.ood=[rotated]"]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def assert_same(found, wanted):
    """Two sets' plugin metrics, and the classes they are scored over."""
    assert found["label_space"] == wanted["label_space"] and found["label_rule"] == "all"
    for metric, value in wanted["predictive"]["plugin"].items():
        if isinstance(value, int | float):
            assert found["predictive"]["plugin"][metric] == pytest.approx(value, abs=1e-6), metric


@pytest.mark.slow
def test_zero_shot_transfer_is_zero_shot_on_the_other_dataset(tmp_path):
    zeroshot = [*QUICK, "method=zeroshot"]
    _, there = execute(tmp_path / "a", *zeroshot, "dataset=digits", "fewshot.transfer=[rendered]")
    _, own = execute(tmp_path / "b", *zeroshot, "dataset=rendered", "dataset.ood=[]")
    assert there["sets"]["rendered"]["class_names"] == own["run"]["classes"]
    assert_same(there["sets"]["rendered"], own["sets"]["test"])


def test_zero_shot_transfer_is_zero_shot_on_your_own_images(tmp_path):
    shapes = ("red circle", "green square", "blue star")
    for domain, seed in (("train", 0), ("test", 100)):
        coloured_images(tmp_path / "mine", {domain: 150}, shapes, each=4, seed=seed)
    zeroshot = [*QUICK, "method=zeroshot", "fewshot.validation=none"]
    transfer = ["dataset=digits", "dataset.ood=[]", f"fewshot.transfer=[folder:{tmp_path}/mine]"]
    directory, there = execute(tmp_path / "a", *zeroshot, *transfer)
    _, own = execute(tmp_path / "b", *zeroshot, "dataset=folder", f"dataset.path={tmp_path}/mine")
    mine = there["sets"]["mine"]
    assert mine["role"] == "transfer" and mine["class_names"] == own["run"]["classes"]
    assert there["run"]["classes"] == NAMES and there["detection"] == {}
    assert_same(mine, own["sets"]["test"])
    listed = json.loads((directory / "shots.json").read_text(encoding="utf-8"))
    assert listed["transfer"] == {"mine": {"images": 12, "classes": 3}}


def test_the_new_half_by_zero_shot_is_what_it_is_by_itself(tmp_path):
    runs = {
        half: execute(tmp_path / half, *DIGITS, "method=zeroshot", f"fewshot.subset={half}")[1]
        for half in ("base", "new")
    }
    assert_same(runs["base"]["sets"]["new"], runs["new"]["sets"]["test"])
    assert runs["base"]["sets"]["new"]["class_names"] == runs["new"]["run"]["classes"] == NAMES[5:]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of the exact filter on the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("base")
    return execute(folder, *DIGITS, "method=kalman", "fewshot.subset=base")


def test_base_to_new_is_the_learnt_map_with_the_new_classes(base):
    directory, results = base
    assert results["run"]["classes"] == NAMES[:5]
    new = results["sets"]["new"]
    assert (new["role"], new["class_names"], new["label_space"]) == ("transfer", NAMES[5:], [0, 1, 2, 3, 4])
    assert {"plugin", "novelty"} <= set(new["predictive"])
    state, _ = read_tensors(directory / "adapter.safetensors")
    task, _, _ = few_shot_task(compose([*DIGITS, "method=kalman", "fewshot.subset=base"]))
    other = task.transfer["new"]
    w, features = state["metric"] @ state["weight"], other.test.inputs
    assert w.abs().max() > 0
    logits = state["log_scale"].exp() * (features + features @ w.T) @ other.text_features.T
    right = logits.argmax(1) == other.test.labels
    assert new["predictive"]["plugin"]["accuracy"] == pytest.approx(right.double().mean().item())
    frame = pd.read_parquet(directory / "predictions.parquet")
    rows = frame[(frame.set == "new") & (frame.predictive == "plugin")]
    assert set(rows.role) == {"transfer"} and list(rows.id) == other.test.ids
    np.testing.assert_allclose(np.stack(rows.probs), logits.softmax(1), atol=1e-5)


def test_h_in_the_report_is_the_hand_formula(base):
    directory, results = base
    row = next(row for row in aggregate(collect([directory]).runs) if row.reported)
    b, n = (results["sets"][name]["predictive"]["novelty"]["accuracy"] for name in ("test", "new"))
    assert 0 < n < 1
    assert row.values[H, "accuracy"].mean == pytest.approx(2 * b * n / (b + n))


def test_probit_and_draws_agree_on_new_classes(tmp_path):
    more = ["method=kalman", "predictive=probit", "fewshot.subset=base", "dataset.ood=[]"]
    _, probit = execute(tmp_path / "probit", *QUICK, "dataset=digits", *more)
    sampled = [
        "method=kalman",
        "predictive=sampled",
        "predictive.samples=400",
        "fewshot.subset=base",
        "dataset.ood=[]",
    ]
    _, drawn = execute(
        tmp_path / "drawn", *[o for o in QUICK if "samples" not in o], "dataset=digits", *sampled
    )
    one = probit["sets"]["new"]["predictive"]["probit"]
    other = drawn["sets"]["new"]["predictive"]["sampled"]
    assert one["epistemic"] > 0 and other["epistemic"] > 0
    assert one["nll"] == pytest.approx(other["nll"], rel=0.05)
    assert one["confidence"] == pytest.approx(other["confidence"], abs=0.02)


def test_a_filter_and_a_first_order_method_are_transferred_too(tmp_path):
    for method, more in (("kalman_online", []), ("adamw", ["optimizer.epochs=1", "optimizer.lr=0.001"])):
        _, results = execute(tmp_path / method, *DIGITS, f"method={method}", "fewshot.subset=base", *more)
        new = results["sets"]["new"]["predictive"]
        assert ("novelty" in new) == (method == "kalman_online")
        assert 0.2 < new["plugin"]["accuracy"] <= 1


def features(path, width, classes=("cup", "pen"), seed=0):
    """Precomputed features of two images a class and split, near the class's own direction."""
    rng = np.random.default_rng(seed)
    unit = lambda rows: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    text = unit(rng.standard_normal((len(classes), width)))
    labels = np.tile(np.arange(len(classes)), 6)
    np.savez(
        path,
        image_features=unit(text[labels] + 0.2 * rng.standard_normal((len(labels), width))),
        text_features=text,
        logit_scale=np.float32(13),
        label=labels.astype(np.int16),
        split=np.repeat(np.arange(3), 2 * len(classes)).astype(np.int8),
        domain=np.zeros(len(labels), np.int8),
        classes=np.array(classes),
        domains=np.array(["photo"]),
        splits=np.array(["train", "val", "test"]),
    )


@pytest.fixture
def two_files(tmp_path):
    features(tmp_path / "mine.npz", 8)
    features(tmp_path / "theirs.npz", 8, ("ant", "bee", "wasp"), 1)
    features(tmp_path / "wide.npz", 9)
    return ["dataset=features", f"data.root={tmp_path}", "dataset.path=mine.npz", *QUICK, "method=kalman"]


def test_precomputed_features_are_transferred_with_their_own_text_features(two_files, tmp_path):
    more = ["fewshot.transfer=[features:theirs.npz]"]
    directory, results = execute(tmp_path / "out", *two_files, *more)
    theirs = results["sets"]["theirs"]
    assert theirs["class_names"] == ["ant", "bee", "wasp"] and theirs["predictive"]["plugin"]["n"] == 6
    with np.load(tmp_path / "theirs.npz") as file:
        rows = torch.from_numpy(file["image_features"][file["split"] == 2])
        text, labels = torch.from_numpy(file["text_features"]), file["label"][file["split"] == 2]
    state, _ = read_tensors(directory / "adapter.safetensors")
    learnt = state["metric"] @ state["weight"]
    predicted = ((rows + rows @ learnt.T) @ text.T).argmax(1).numpy()
    assert theirs["predictive"]["plugin"]["accuracy"] == pytest.approx((predicted == labels).mean())


def test_two_of_one_name_are_refused(two_files):
    with pytest.raises(ConfigError, match="lists 'theirs' twice"):
        others(compose([*two_files, "fewshot.transfer=[features:theirs.npz,features:a/theirs.npz]"]))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["fewshot.transfer=[features:wide.npz]"], "of wide have width 9, those of features 8"),
        (["fewshot.transfer=[digits]"], "digits holds images, but dataset features features"),
        (["fewshot.transfer=[features:nowhere.npz]"], "nowhere.npz"),
        (["fewshot.transfer=[dtdd]"], "did you mean 'dtd'"),
        (["fewshot.transfer=[dtd]"], "dtd"),
    ],
)
def test_what_cannot_be_transferred_is_one_clear_line(two_files, tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setattr(sys, "argv", ["clipkal", *two_files, f"output_dir={tmp_path}/out", *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    line = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert said in line and line.startswith("clipkal: ") and "\n" not in line
