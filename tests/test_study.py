"""The study's own helpers: what is compared, the resumable file of cells, one real cell, the tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.study import COLUMNS, append, cells, done, identity, run
from benchmarks.study_cell import configuration, joined, learn, run_cell, task_of
from benchmarks.study_plan import FACTORS, LONG, ONE, SEEDS, SHOTS, WIDE_FACTORS, Data, data_sets, entries
from benchmarks.study_report import cell, difference, promises, read, summary, tables
from clipkal.adapters import LinearAdapter
from clipkal.optim import OnlineKalman
from clipkal.training import Plan, train

CLASSES, WIDTH = 3, 8
DIGITS = data_sets(None)[1]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Three well separated classes in two domains, as precomputed features."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, WIDTH))
    label = np.repeat(np.arange(CLASSES), 60)
    domain, split = np.tile(np.arange(2), 90), np.tile(np.repeat(np.arange(3), 20), CLASSES)

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    path = tmp_path_factory.mktemp("study") / "toy.npz"
    np.savez(
        path,
        image_features=unit(centres[label] + 0.5 * generator.normal(size=(len(label), WIDTH))),
        text_features=unit(centres + 2.0 * generator.normal(size=centres.shape)),
        logit_scale=np.float32(10.0),
        label=label.astype(np.int16),
        domain=domain.astype(np.int8),
        split=split.astype(np.int8),
        classes=np.array(["a", "b", "c"]),
        domains=np.array(["here", "there"]),
        splits=np.array(["train", "val", "test"]),
    )
    return Data("toy", ("dataset=features", f"dataset.path={path}", "dataset.id_domain=here"))


def entry(key: str):
    return next(e for e in entries() if e.key == key)


def test_entries_are_distinct_and_search_five_values_each():
    keys = [e.key for e in entries()]
    assert len(set(keys)) == len(keys)
    assert len(FACTORS) == len(WIDE_FACTORS) == 5
    for one in [e for e in entries() if e.words]:
        cfg = configuration(DIGITS, one, 4, 2)
        assert (cfg.fewshot.shots, cfg.seed) == (4, 2)
        if one.search == "learning rate":
            assert cfg.optimizer.lr == "auto" and len(cfg.optimizer.lr_grid) == 5
            assert cfg.optimizer.epochs == 1


def test_every_cell_of_the_promised_study_is_there():
    wanted = cells([DIGITS], [])
    assert len(wanted) == len(entries()) * len(SHOTS) * len(SEEDS)
    assert {e.method for _, e, _, _ in wanted} >= {
        "zeroshot",
        "sgd",
        "adamw",
        "reng",
        "rkalman",
        "loko",
        "kalman",
    }


def test_a_missing_features_folder_leaves_the_embedded_sets(tmp_path: Path):
    assert [d.name for d in data_sets(tmp_path)] == ["rendered", "digits"]


def test_joined_is_both_sets_in_order(features: Data):
    task = task_of(features, 2, 1)
    both = joined(task.shots, task.val)
    assert both.ids == [*task.shots.ids, *task.val.ids]
    assert torch.equal(both.inputs[: len(task.shots.labels)], task.shots.inputs)
    assert torch.equal(both.labels[len(task.shots.labels) :], task.val.labels)


@pytest.mark.parametrize(
    "key", [f"{ONE}: kalman_online", f"{LONG}: kalman", f"{LONG}: kalman, prior searched", f"{ONE}: loko"]
)
def test_a_cell_learns_and_reports_what_it_chose(features: Data, key: str):
    zero = run_cell(features, entry(f"{LONG}: zeroshot"), 4, 1)[0]
    rows = run_cell(features, entry(key), 4, 1)
    searched = bool(entry(key).search)
    assert [row["predictive"] for row in rows] == (["plugin"] if searched else ["plugin", "sampled"])
    assert all(row["id_nll"] < zero["id_nll"] and row["id_accuracy"] > zero["id_accuracy"] for row in rows)
    assert not searched or rows[0]["value"] in WIDE_FACTORS
    assert set(rows[0]) <= set(COLUMNS)


def test_the_search_ends_at_the_filter_it_chose(features: Data):
    """The adapter left behind is the one that the chosen multiple of the default ratio gives by itself."""
    searched, task = entry(f"{ONE}: kalman_online, prior searched"), task_of(features, 4, 1)
    adapter, alone = (LinearAdapter(task.text_features, task.logit_scale) for _ in range(2))
    kept = learn(configuration(features, searched, 4, 1), searched, adapter, task).kept
    assert kept.rate in FACTORS
    plan = Plan(batch_size=32, seed=1)
    train(
        alone, lambda model, _: OnlineKalman(model, ratio=10.0 * kept.rate, epochs_as="optimiser"), task, plan
    )
    assert torch.equal(adapter.weight, alone.weight)


def test_a_study_goes_on_where_it_stopped(features: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "cells.csv"
    wanted = [(features, entry(f"{LONG}: zeroshot"), shots, 1) for shots in (1, 4)]
    run(path, wanted[:1])
    before = path.read_text()
    run(path, wanted)
    assert path.read_text().startswith(before)
    assert done(path) == {("toy", "1", "1", f"{LONG}: zeroshot"), ("toy", "4", "1", f"{LONG}: zeroshot")}
    assert len(path.read_text().splitlines()) == 3
    assert capsys.readouterr().out.count("toy") == 2


def made_up(path: Path) -> pd.DataFrame:
    """Two seeds of three entries with known numbers."""
    for seed, shift in ((1, 0.0), (2, 0.02)):
        for key, value in ((f"{ONE}: adamw", 0.5), (f"{LONG}: adamw", 0.6), (f"{LONG}: kalman", 0.7)):
            for predictive in ("plugin", "sampled") if "kalman" in key else ("plugin",):
                numbers = {
                    c: value + shift * ("kalman" in key) for c in COLUMNS if c.startswith(("id_", "ood_"))
                }
                row = {"dataset": "toy", "shots": 4, "seed": seed, "entry": key, "predictive": predictive}
                append(path, [row | {"diverged": False} | numbers])
    return read(path)


def test_promises_are_differences_paired_by_seed(tmp_path: Path):
    frame = made_up(tmp_path / "cells.csv")
    found = difference(frame, f"{LONG}: kalman", f"{ONE}: adamw", "id_accuracy")
    assert found == pytest.approx([0.2, 0.22])
    assert "| toy | 4 | 21.0 ± 12.7 | – | 11.0 ± 12.7 |" in promises(frame)[2]
    assert identity({"dataset": "toy", "shots": 4, "seed": 1, "entry": "x"}) == ("toy", "4", "1", "x")


def test_tables_show_means_intervals_and_gaps(tmp_path: Path):
    frame = made_up(tmp_path / "cells.csv")
    assert cell([0.5, 0.6], 100, 1) == "55.0 ± 63.5"
    assert cell([0.5], 100, 1) == "50.0"
    assert cell([0.5, float("nan")], 100, 1) == "–"
    text = tables(frame)
    assert "| kalman | sampled | 71.0 ± 12.7" in text and text.count("## toy, 4 shots") == 2
    assert "mean over the data sets, 4 shots, one epoch (toy)" in summary(frame)
