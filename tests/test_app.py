"""A whole run: what it leaves behind, what a second call does, and that a stopped run loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import whole_runs
from PIL import Image
from whole_runs import from_here, results_in

from clipkal import cli
from clipkal.app import run
from clipkal.config import compose
from clipkal.recording.checkpoint import Checkpoint
from clipkal.recording.recorder import Recorder

QUICK = ["dataset=digits", *whole_runs.QUICK]
FILES = {
    "config.yaml",
    "metrics.csv",
    "results.json",
    "shots.json",
    "predictions.parquet",
    "classes.safetensors",
    "adapter.safetensors",
    "finished.json",
    "figures/reliability.png",
    "figures/risk_coverage.png",
    "figures/uncertainty.png",
}


def execute(folder, *overrides):
    return whole_runs.execute(folder, *QUICK, *overrides)


def files_of(directory):
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("method", ["zeroshot", "adamw", "sgd", "kalman", "kalman_online"])
def test_every_method_leaves_a_whole_run_behind(tmp_path, method):
    quick = ["optimizer.epochs=2", "optimizer.lr_grid=[0.001,0.01]"] if method in ("adamw", "sgd") else []
    directory, results = execute(tmp_path, f"method={method}", *quick)
    assert directory == tmp_path / "digits" / "mini" / method / "2shot-seed1"
    bayesian = method.startswith("kalman")
    assert files_of(directory) == FILES | (
        {"posterior.safetensors", "predictive.safetensors"} if bayesian else set()
    )
    assert results["run"]["method"] == method
    assert (results["training"]["parameters"] > 0) == (method != "zeroshot")
    assert results["sets"]["test"]["role"] == "id"
    for one in results["sets"].values():
        assert ("novelty" in one["predictive"]) == bayesian
        plugin = one["predictive"]["plugin"]
        assert 0 <= plugin["ece"] <= 1
        assert plugin["nll"] > 0
        assert plugin["n"] > 100
    frame = pd.read_parquet(directory / "predictions.parquet")
    test = frame[(frame.set == "test") & (frame.predictive == "plugin")]
    accuracy = results["sets"]["test"]["predictive"]["plugin"]["accuracy"]
    assert (test.label == test.predicted).mean() == pytest.approx(accuracy)
    assert np.allclose(np.stack(test.probs).sum(1), 1, atol=1e-5)
    listed = json.loads((directory / "shots.json").read_text(encoding="utf-8"))
    assert len(listed["train"]) == 20


def test_learning_beats_zero_shot_on_real_digits(tmp_path):
    accuracy = {}
    for method in ("zeroshot", "kalman"):
        _, results = execute(tmp_path / method, f"method={method}", "fewshot.shots=8")
        accuracy[method] = results["sets"]["test"]["predictive"]["plugin"]["accuracy"]
    assert accuracy["kalman"] > accuracy["zeroshot"] + 0.1


def test_the_same_run_gives_the_same_numbers_and_another_seed_others(tmp_path):
    first = execute(tmp_path / "a", "method=kalman")[1]
    again = execute(tmp_path / "b", "method=kalman")[1]
    other = execute(tmp_path / "c", "method=kalman", "seed=2")[1]
    assert first["sets"] == again["sets"]
    assert first["run"]["shots_sha256"] == again["run"]["shots_sha256"] != other["run"]["shots_sha256"]


def test_a_finished_run_is_skipped_and_a_changed_one_is_done_beside_it(tmp_path, caplog):
    directory, _ = execute(tmp_path, "method=zeroshot")
    written = (directory / "results.json").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="clipkal"):
        run(compose([*QUICK, f"output_dir={tmp_path}", "method=zeroshot"]))
    assert "already finished" in caplog.text
    assert (directory / "results.json").stat().st_mtime_ns == written
    run(compose([*QUICK, f"output_dir={tmp_path}", "method=zeroshot", "fewshot.validation=none"]))
    old = [p.name for p in directory.parent.iterdir() if ".old-" in p.name]
    assert len(old) == 1
    assert (directory.parent / old[0] / "results.json").exists()


def test_a_crashed_run_is_redone(tmp_path):
    directory, results = execute(tmp_path, "method=zeroshot")
    (directory / "finished.json").unlink()
    (directory / "results.json").write_text("{half", encoding="utf-8")
    assert execute(tmp_path, "method=zeroshot")[1]["sets"] == results["sets"]


def image_folder(root, classes, domains, count=4):
    for domain in domains:
        for index, name in enumerate(classes):
            for i in range(count):
                path = root / domain / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(1000 * index + i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)


def test_your_own_images_from_folders(tmp_path):
    image_folder(tmp_path / "mine", ["ant", "bee"], ["train", "val", "test"])
    image_folder(tmp_path, ["ant", "bee"], ["sketches"])
    overrides = [
        "dataset=folder",
        f"dataset.path={tmp_path}/mine",
        f"dataset.ood=[{tmp_path}/sketches]",
        "method=kalman",
    ]
    _, results = execute(tmp_path / "out", *overrides)
    assert results["run"]["classes"] == ["ant", "bee"]
    assert results["sets"]["sketches"]["role"] == "ood"
    assert results["sets"]["sketches"]["predictive"]["plugin"]["n"] == 8


def command(capsys, monkeypatch, *overrides):
    """What `clipkal …` prints on standard error, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["clipkal", *overrides])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err.strip()


BAD = [
    (["dataset=folder"], "type dataset.path=/your/images"),
    (["dataset=folder", "dataset.path={tmp}/nowhere"], "nowhere"),
    (["dataset=folder", "dataset.path={tmp}/empty"], "empty"),
    (["fewshot.shots=9999"], "fewer than fewshot.shots=9999"),
    (["fewshot.shots=0"], "fewshot.shots should be"),
    (["fewshot.validation=sometimes"], "fewshot.validation"),
    (["backbone=open_clip", "backbone.model=ViT-Q-16"], "ViT-Q-16"),
    (["backbone=open_clip", "backbone.model=RN50", "backbone.pretrained={tmp}/cut.pt"], "cut.pt"),
    (["backbone=open_clip", "backbone.model=ViT-B-32", "backbone.pretrained=openai"], "ViT-B-32-quickgelu"),
    (["backbone=precomputed"], "backbone=mini"),
    (["output_dir={tmp}/file"], "output_dir=…"),
    (["dataset.ood=[sketchy]"], "sketchy"),
    (["method=zeroshot", "predictive=sampled"], "predictive=sampled needs a posterior"),
    (["method=adamw", "optimizer.lr=fast"], "optimizer.lr should be a valid number"),
    (["fewshot.shot_list={tmp}/none.json"], "none.json"),
    (["seed=-1"], "seed should be"),
]


@pytest.mark.parametrize(("overrides", "said"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_clear_line(tmp_path, capsys, monkeypatch, overrides, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 half a file")
    given = [o.format(tmp=tmp_path) for o in overrides]
    keys = {o.partition("=")[0] for o in given}
    rest = [o for o in [*QUICK, f"output_dir={tmp_path}/out"] if o.partition("=")[0] not in keys]
    code, line = command(capsys, monkeypatch, *given, *rest)
    assert code == 2
    assert said in line
    assert line.startswith("clipkal: ")
    assert "\n" not in line


def test_an_unreadable_test_image_stops_the_run_or_is_skipped_and_counted(tmp_path, capsys, monkeypatch):
    image_folder(tmp_path / "mine", ["ant", "bee"], ["train", "val", "test"])
    broken = tmp_path / "mine" / "test" / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    here = [
        "dataset=folder",
        f"dataset.path={tmp_path}/mine",
        "method=zeroshot",
        f"output_dir={tmp_path}/out",
    ]
    code, line = command(capsys, monkeypatch, *here, "tracking=disabled", "fewshot.shots=2")
    assert code == 2
    assert "2.png" in line
    assert "data.on_bad_image=skip" in line
    run(compose([*QUICK, *here, "data.on_bad_image=skip"]))
    _, results = results_in(tmp_path / "out")
    assert [Path(p).name for p in results["skipped"]["test"]] == ["2.png"]
    assert results["sets"]["test"]["predictive"]["plugin"]["n"] == 7


LONG = ["method=adamw", "optimizer.epochs=150", "optimizer.lr_grid=[0.001,0.003]", "optimizer.batch_size=4"]
LONG += ["validate_every=0.4"]


def start(folder, *overrides, new=False):
    run_it = [sys.executable, "-m", "clipkal"]
    arguments = [*run_it, *QUICK, *LONG, f"output_dir={folder}", "threads=1", *overrides]
    arguments = [one for one in arguments if one not in replaced(overrides)]
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(
        arguments, stdout=pipe, stderr=same, text=True, env=from_here(), start_new_session=new
    )


def replaced(overrides):
    """Those of our usual words whose key stands among the overrides."""
    keys = {one.partition("=")[0] for one in overrides}
    return [one for one in [*QUICK, *LONG] if one.partition("=")[0] in keys and one not in overrides]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder).wait(240) == 0
    return results_in(folder)


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_and_gives_the_numbers_of_an_uninterrupted_one(tmp_path, uninterrupted, kill):
    process = start(tmp_path / "killed", "checkpoint_every=0.02")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("checkpoint.*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kill)
    code = process.wait(60)
    assert code == (143 if kill == signal.SIGTERM else -signal.SIGKILL)
    assert not list((tmp_path / "killed").rglob("finished.json"))
    again = start(tmp_path / "killed", "checkpoint_every=0.02")
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0, output
    assert "going on from the checkpoint" in output
    (directory, resumed), (other, expected) = results_in(tmp_path / "killed"), uninterrupted
    assert resumed["sets"] == expected["sets"]
    assert resumed["training"]["trials"] == expected["training"]["trials"]
    curves = [
        frame[frame.metric != "seconds"].reset_index(drop=True)
        for frame in (pd.read_csv(one / "metrics.csv") for one in (directory, other))
    ]
    pd.testing.assert_frame_equal(*curves)
    assert set((curves[0].step % 1).round(6)) == {0, 0.4, 0.8}
    assert not list(directory.glob("checkpoint*"))


@pytest.mark.parametrize(
    "saved", [2, 4, 5]
)  # within the first pass, at its end before it is judged, within the second
def test_points_logged_after_the_last_checkpoint_are_neither_lost_nor_doubled(tmp_path, monkeypatch, saved):
    steps, words = (
        [],
        ["method=kalman_online", "optimizer.epochs=3", "optimizer.batch_size=5", "validate_every=0.25"],
    )

    def die_three_steps_after_saving(self, state):
        steps.append(state)
        if len(steps) == saved:
            Checkpoint.save(self.path, state(), self.fingerprint)
        if len(steps) == saved + 3:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "after_step", die_three_steps_after_saving)
        with pytest.raises(MemoryError):
            execute(tmp_path, *words)
    directory, _ = execute(tmp_path, *words)
    table = pd.read_csv(directory / "metrics.csv").query("split == 'trial0'")
    for metric in ("val_nll", "val_accuracy", "seconds"):
        assert table[table.metric == metric].step.tolist() == [part / 4 for part in range(13)]
    assert table[table.metric == "seconds"].value.is_monotonic_increasing


def test_a_multirun_does_the_rest_when_one_job_fails(tmp_path, capsys, monkeypatch):
    common = [o for o in QUICK if not o.startswith("fewshot.shots")]
    sweep = ["-m", *common, "method=zeroshot,kalman", "fewshot.shots=1,9999", f"output_dir={tmp_path}"]
    code, said = command(capsys, monkeypatch, *sweep)
    assert code == 2
    assert "fewer than fewshot.shots=9999" in said
    done = sorted(p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("finished.json"))
    assert done == [
        f"digits/mini/{method}/1shot-seed1--predictive.samples-8" for method in ("kalman", "zeroshot")
    ]


def test_jobs_of_a_multirun_leave_their_figures_to_the_report(tmp_path, capsys, monkeypatch):
    def drawn(*words):
        monkeypatch.setattr(
            sys, "argv", ["clipkal", *QUICK, "method=zeroshot", f"output_dir={tmp_path}", *words]
        )
        cli.main()
        return sorted(path.parents[1].name.partition("--")[0] for path in tmp_path.rglob("reliability.png"))

    assert drawn("-m", "seed=1") == []
    assert drawn("-m", "seed=2", "figures=true") == ["2shot-seed2"]
    assert drawn("seed=3", "figures=false") == ["2shot-seed2"]
    assert drawn("seed=4") == ["2shot-seed2", "2shot-seed4"]
    drawn("seed=1", "figures=true")
    assert "already finished" in capsys.readouterr().out, "whether a figure is drawn makes no other run"


def test_the_saved_adapter_gives_the_recorded_predictions_back(tmp_path):
    from clipkal.adapters import LinearAdapter
    from clipkal.app import few_shot_task
    from clipkal.tracking.tensors import read_tensors

    overrides = [*QUICK, "method=adamw", "optimizer.epochs=2", "optimizer.lr=0.01", f"output_dir={tmp_path}"]
    run(compose(overrides))
    directory, results = results_in(tmp_path)
    state, about = read_tensors(directory / "adapter.safetensors")
    task, _, _ = few_shot_task(compose(overrides))
    adapter = LinearAdapter(task.text_features, task.logit_scale, coordinates="classes")
    adapter.load_state_dict(state)
    with torch.no_grad():
        predicted = adapter(task.test.inputs).argmax(1)
    accuracy = (predicted == task.test.labels).double().mean()
    assert float(accuracy) == pytest.approx(results["sets"]["test"]["predictive"]["plugin"]["accuracy"])
    assert about["method"] == "adamw"


def test_a_finished_run_is_skipped_without_importing_torch(tmp_path, monkeypatch):
    overrides = [*QUICK, "method=zeroshot", f"output_dir={tmp_path}"]
    code = "import sys; sys.modules['torch'] = None\nfrom clipkal.cli import main; main()"
    monkeypatch.setattr(sys, "argv", ["clipkal", *overrides])
    cli.main()
    again = [sys.executable, "-c", code, *overrides]
    ran = subprocess.run(again, capture_output=True, text=True, env=from_here())
    assert ran.returncode == 0, ran.stderr
    assert "already finished" in ran.stdout


def test_a_run_from_cached_features_builds_no_backbone(tmp_path):
    overrides = [*QUICK, "method=kalman"]
    first = execute(tmp_path / "first", *overrides)[1]
    slow = ("open_clip", "torchvision", "torch._dynamo", "timm", "sklearn.metrics", "torchmetrics")
    code = (
        "import sys; from clipkal.cli import main; main()\n"
        f"found = [name for name in {slow!r} if name in sys.modules]; assert not found, found"
    )
    # One thread, as this process has: sums keep their order
    words = [sys.executable, "-c", code, *overrides, f"output_dir={tmp_path / 'second'}", "threads=1"]
    ran = subprocess.run(words, capture_output=True, text=True, env=from_here())
    assert ran.returncode == 0, ran.stderr
    assert results_in(tmp_path / "second")[1]["sets"] == first["sets"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_leaves_no_worker_and_a_checkpoint_of_every_running_job(tmp_path, kill):
    sweep = ["-m", "seed=1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "checkpoint_every=1000"]
    process = start(tmp_path, *sweep, "optimizer.epochs=2000", new=True)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.rglob("metrics.csv"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, kill)  # as a terminal or a scheduler does: every process of the group
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + kill, output
    assert len({path.parent for path in tmp_path.rglob("checkpoint.*.pt")}) == 2
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:  # joblib's own helper process goes a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.1)
