"""What a run leaves for W&B offline, read back value by value; and what becomes of it when the run goes on."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tracking.wandb_record import Written, read

from clipkal.app import run
from clipkal.config import compose
from clipkal.tracking import Mirror
from clipkal.tracking.wandb_offline import SyncLine, unsent

RUN = [
    "dataset=digits",
    "method=kalman_online",
    "fewshot.shots=4",
    "predictive.samples=8",
    "tracking=offline",
]
RUN += ["data.progress=false", "dataset.ood=[inverted,noisy]"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.pop("WANDB_DATA_DIR", None)


def record_of(folder: Path) -> Written:
    (found,) = folder.rglob("offline-run-*")
    return read(found)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """One run, and its record as W&B closed it."""
    place = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_API_KEY", "")
        run(compose([*RUN, f"output_dir={place}", "tracking.notes=a note", "tracking.curve_points=2"]))
        import wandb

        wandb.teardown()  # its process has then closed the file
    (folder,) = (path.parent for path in place.rglob("finished.json"))
    return folder, record_of(folder)


def test_how_the_run_is_filed(done: tuple[Path, Written]) -> None:
    folder, record = done
    filed = record.run
    assert filed.project == "clipkal" and filed.job_type == "train" and filed.notes == "a note"
    assert filed.run_group == "digits-mini-kalman_online-4shot"
    assert list(filed.tags) == ["digits", "mini", "kalman_online", "4shot", "seed1"]
    finished = json.loads((folder / "finished.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    assert filed.run_id == finished["run_id"]
    assert record.config["optimizer"]["batch_size"] == 32
    assert record.config["environment"] == results["environment"]
    assert record.config["run"]["shots_sha256"] == results["run"]["shots_sha256"]
    assert record.config["inputs"] == finished["inputs"]
    assert record.exit_code == 0


def test_curves_have_axes_that_overlay(done: tuple[Path, Written]) -> None:
    folder, record = done
    for names in ("train/*", "val/*", "posterior/*"):
        assert record.metrics[names].step_metric == "images_seen"
    assert record.metrics["trials/*"].step_metric == "epoch"
    rows = [row for row in record.rows if "images_seen" in row]
    assert [row["images_seen"] for row in rows] == [0, 32, 40]
    assert [row["epoch"] for row in rows] == [0, 0.8, 1] and [row["step"] for row in rows] == [0, 1, 2]
    logged = pd.read_csv(folder / "metrics.csv", float_precision="round_trip")
    table = logged[logged.split == "trial0"].set_index(["step", "metric"]).value
    assert rows[0]["val/nll"] == table[0, "val_nll"] and rows[2]["val/nll"] == table[1, "val_nll"]
    assert rows[2]["train/loss"] == table[1, "train_loss"]
    assert rows[2]["posterior/log_evidence"] == table[1, "log_evidence"]
    for name in ("mahalanobis", "trace", "effective_parameters"):
        assert rows[2][f"posterior/{name}"] == table[1, f"posterior/{name}"]
        assert f"posterior/{name}" in rows[1]
    assert 0 < rows[1]["posterior/effective_parameters"] < rows[2]["posterior/effective_parameters"]


def test_final_numbers_are_those_of_results_json(done: tuple[Path, Written]) -> None:
    folder, record = done
    results = json.loads((folder / "results.json").read_text())
    (final,) = [row for row in record.rows if "id/accuracy" in row]
    ood = {name: one for name, one in results["sets"].items() if one["role"] == "ood"}
    for metric in ("accuracy", "nll", "brier"):
        assert final[f"id/{metric}"] == results["sets"]["test"]["predictive"]["novelty"][metric]
        values = [one["predictive"]["novelty"][metric] for one in ood.values()]
        assert final[f"ood/mean_{metric}"] == pytest.approx(sum(values) / len(values))
    for name, one in ood.items():
        assert final[f"ood/{name}/nll"] == one["predictive"]["novelty"]["nll"]
        assert final[f"ood/{name}/auroc"] == results["detection"][name]["msp"]["auroc"]
        assert final[f"cal/{name}/ece"] == one["predictive"]["novelty"]["ece"]
    numbers = {
        key: value
        for key, value in record.summary.items()
        if isinstance(value, int | float) and key.count("/")
    }
    chosen = {key for key in numbers if not key.startswith(("tables/", "charts/", "figures/"))}
    assert chosen == {
        *(
            "id/accuracy",
            "id/nll",
            "id/brier",
            "cal/id/ece",
            "ood/mean_accuracy",
            "ood/mean_nll",
            "ood/mean_auroc",
        ),
        *("cal/ood_mean_ece", "val/nll", "train/seconds", "posterior/log_evidence"),
    }
    assert all(record.summary[key] == final[key] for key in chosen & final.keys())


def media(folder: Path, name: str) -> dict[str, Any]:
    (path,) = folder.rglob(f"files/media/table/{name}_*.table.json")
    return json.loads(path.read_text())


def test_tables_charts_figures_and_artifacts(done: tuple[Path, Written]) -> None:
    folder, record = done
    results = json.loads((folder / "results.json").read_text())
    sets = media(folder, "tables/sets")
    assert len(sets["data"]) == sum(len(one["predictive"]) for one in results["sets"].values())
    row = dict(zip(sets["columns"], sets["data"][0], strict=True))
    plugin = results["sets"]["test"]["predictive"]["plugin"]
    assert (row["set"], row["predictive"], row["nll"], row["auroc"]) == (
        "test",
        "plugin",
        plugin["nll"],
        None,
    )
    classes = media(folder, "tables/classes")
    assert classes["data"][0][:4] == [
        "test",
        "zero",
        72,
        results["sets"]["test"]["predictive"]["novelty"]["per_class_accuracy"][0],
    ]
    tables = [
        json.loads(path.read_bytes())
        for path in folder.glob("wandb/home/artifacts/staging/tmp*")
        if path.read_bytes()[:1] == b"{"
    ]
    images = next(table for table in tables if "chosen as" in table.get("columns", []))
    places = {
        name: images["columns"].index(name)
        for name in ("image", "label", "predicted", "chosen as", "epistemic")
    }
    mistakes = [row for row in images["data"] if row[places["chosen as"]] == "confident mistake"]
    assert mistakes and all(row[places["label"]] != row[places["predicted"]] for row in mistakes)
    assert all(
        row[places["image"]]["_type"] == "image-file" and row[places["epistemic"]] >= 0 for row in mistakes
    )
    curve = media(folder, "charts/risk_coverage_table")
    last = [y for x, line, y in curve["data"] if line == "test"][-1]
    assert last == pytest.approx(1 - results["sets"]["test"]["predictive"]["novelty"]["accuracy"])
    assert {line for _, line, _ in media(folder, "charts/reliability_table")["data"]} == {
        "perfect",
        *results["sets"],
    }
    assert {path.stem.rsplit("_", 2)[0] for path in folder.rglob("files/media/images/figures/*.png")} == {
        "reliability",
        "risk_coverage",
        "uncertainty",
    }
    held = {kind: {entry.path for entry in one.manifest.contents} for kind, one in record.artifacts.items()}
    assert {
        "config.yaml",
        "results.json",
        "adapter.safetensors",
        "posterior.safetensors",
        "finished.json",
    } <= held["run"]
    staged = [entry.local_path for one in record.artifacts.values() for entry in one.manifest.contents]
    assert all(Path(path).is_relative_to(folder) and Path(path).exists() for path in staged)


def test_a_continued_run_has_a_record_of_its_own_with_all_of_it(tmp_path: Path, caplog: Any) -> None:
    """Offline W&B cannot resume: the second record is whole, and the first is set aside."""
    caplog.set_level(logging.INFO, "clipkal")
    settings = [
        *RUN,
        "method=adamw",
        "optimizer.lr_grid=[0.001,0.01]",
        "optimizer.epochs=3",
        f"output_dir={tmp_path}",
    ]
    settings += ["checkpoint_every=0", "tracking.media=false"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        from clipkal.recording.recorder import Recorder

        patch.setattr(Recorder, "epoch", stopping_at(Recorder.epoch, trial=1, epoch=2))
        run(compose(settings))
    run(compose(settings))
    import wandb

    wandb.teardown()
    (folder,) = (path.parent for path in tmp_path.rglob("finished.json"))
    (first,) = folder.glob("wandb/replaced-offline-run-*")
    before, after = read(first), record_of(folder)
    assert before.exit_code == 1 and after.exit_code == 0
    assert after.run.run_id == f"{before.run.run_id}-2" and after.run.run_group == before.run.run_group
    curve = [
        (row["epoch"], row["trials/lr-0.001/val_nll"])
        for row in after.rows
        if "trials/lr-0.001/val_nll" in row
    ]
    table = pd.read_csv(folder / "metrics.csv", float_precision="round_trip")
    table = table.query("split == 'trial0' and metric == 'val_nll'")
    assert curve == list(zip(table.step, table.value, strict=True)) and len(curve) == 4
    kept = [row["val/nll"] for row in after.rows if "val/nll" in row]
    assert len(kept) == 4 and min(kept) == after.summary["val/nll"]
    (line,) = [text for text in caplog.messages if "wandb sync" in text]
    assert line == f"W&B: send with: wandb sync {folder}/wandb/offline-run-*"


def stopping_at(original: Any, trial: int, epoch: int) -> Any:
    def stop(self: Any, now: int, at: int, values: dict[str, float]) -> None:
        if (now, at) == (trial, epoch):
            raise KeyboardInterrupt
        original(self, now, at, values)

    return stop


def test_a_sweep_says_how_to_send_its_runs(tmp_path: Path, capsys: Any) -> None:
    config = OmegaConf.create(
        {"output_dir": str(tmp_path / "a b"), "tracking": {"backend": "wandb", "mode": "offline"}}
    )
    SyncLine().on_multirun_end(config)
    assert capsys.readouterr().out == ""
    for seed, sent in enumerate((False, False, True)):
        folder = tmp_path / f"a b/d/b/m/seed{seed}/wandb/offline-run-{seed}"
        folder.mkdir(parents=True)
        (folder / ("run-x.wandb.synced" if sent else "run-x.wandb")).touch()
    SyncLine().on_multirun_end(config)
    line = capsys.readouterr().out
    assert line == f"W&B: send 2 runs with: wandb sync '{tmp_path}/a b'/*/*/*/*/wandb/offline-run-*\n"
    shown = subprocess.run(
        f"echo {line.partition('sync ')[2]}", shell=True, capture_output=True, text=True
    ).stdout
    assert shown.count("/wandb/offline-run-") == 3  # the shell takes it; W&B itself skips what was sent
    assert len(unsent(tmp_path / "a b")) == 2


def test_zero_shot_is_an_evaluation(tmp_path: Path) -> None:
    from clipkal.app import how_it_learns

    assert how_it_learns(compose(["method=zeroshot"])) == {"job_type": "evaluate"}
    assert how_it_learns(compose(["method=adamw"])) == {"job_type": "train", "axis": "epoch"}
    assert how_it_learns(compose(["method=loko"])) == {"job_type": "train", "axis": "images_seen"}


def test_the_mirror_holds_little_of_a_run_that_is_over(tmp_path: Path) -> None:
    """Rows of one run after the other: nothing of a mirror is left but what W&B keeps of its own."""
    import gc

    from omegaconf import DictConfig

    cfg = OmegaConf.create({"tracking": {}})
    assert isinstance(cfg, DictConfig)
    settings = compose([*RUN]).tracking
    counts = []
    for number in range(7):
        with Mirror(
            settings, f"id{number}", tmp_path / str(number), config={"a": {str(i): i for i in range(500)}}
        ) as m:
            m.log({"a": 1.0}, step=1)
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert counts[6] - counts[3] < 3 * 100, counts
    assert not HydraConfig.initialized() and sys.getrefcount(m) < 5
