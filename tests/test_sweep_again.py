"""A sweep that is started again, or twice at once: nothing is lost, nothing is done twice, and nobody writes where another does."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from clipkal import cli
from clipkal.recording.recorder import Recorder
from clipkal.tracking import RunDirectory

FROM_HERE = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
HERE = ["dataset=digits", "dataset.ood=[]", "tracking=disabled", "fewshot.shots=2", "data.progress=false"]
LEARN = [*HERE, "method=kalman_online", "optimizer.epochs=4", "optimizer.batch_size=5", "validate_every=0.25"]


def sweep(monkeypatch, *words):
    """The exit code of `clipkal -m …`."""
    monkeypatch.setattr(sys, "argv", ["clipkal", "-m", *words])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


def runs(folder):
    """By their seeds, the runs that are finished."""
    found = {
        int(path.parent.name[10]): path.parent for path in folder.glob("*/*/*/2shot-seed*/finished.json")
    }
    return dict(sorted(found.items()))


def stamps(run):
    return {one.name: one.stat().st_mtime_ns for one in run.iterdir()}


def numbers(run):
    found = json.loads((run / "results.json").read_text())
    return found["sets"], found["training"]["trials"]


def curves(run):
    """metrics.csv but for the seconds, which no two runs share."""
    return pd.read_csv(run / "metrics.csv").query("metric != 'seconds'").reset_index(drop=True)


def test_a_sweep_that_was_interrupted_and_started_again_has_lost_nothing_and_does_nothing_twice(
    tmp_path, monkeypatch, capsys
):
    words = [*LEARN, "seed=1,2,3"]
    assert sweep(monkeypatch, *words, f"output_dir={tmp_path / 'whole'}") == 0
    expected = runs(tmp_path / "whole")
    again = [*words, f"output_dir={tmp_path / 'cut'}"]
    after_step, steps = Recorder.after_step, []

    def stop_at_the_ninth_step_of_the_second(self, state):
        steps.append(self.cfg.seed)
        if steps.count(2) == 9:
            signal.raise_signal(signal.SIGINT)
        after_step(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "after_step", stop_at_the_ninth_step_of_the_second)
        assert sweep(patch, *again) == 130
    assert "3 jobs: 1 done, 1 stopped, 1 not begun" in capsys.readouterr().out
    assert list(runs(tmp_path / "cut")) == [1] and list(tmp_path.rglob("cut/**/checkpoint.*.pt"))
    first, steps[:] = stamps(runs(tmp_path / "cut")[1]), []

    count = lambda self, state: steps.append(self.cfg.seed) or after_step(self, state)
    monkeypatch.setattr(Recorder, "after_step", count)
    assert sweep(monkeypatch, *again) == 0
    said = capsys.readouterr().out
    assert "going on from the checkpoint" in said and "3 jobs: 3 done (1 before)" in said
    found = runs(tmp_path / "cut")
    assert stamps(found[1]) == first
    assert (steps.count(1), steps.count(2), steps.count(3)) == (0, 16 - 9, 16)
    assert not list(tmp_path.rglob("checkpoint.*.pt"))
    for seed, run in expected.items():
        assert numbers(found[seed]) == numbers(run)
        pd.testing.assert_frame_equal(curves(found[seed]), curves(run))
    assert curves(found[2]).query("metric == 'val_nll'").step.tolist() == [part / 4 for part in range(17)]

    half = (found[2] / "results.json").read_text()
    (found[2] / "results.json").write_text(half[: len(half) // 2])
    steps.clear()
    assert sweep(monkeypatch, *again) == 0
    assert "damaged files (results.json); moved to" in capsys.readouterr().out
    assert set(steps) == {2} and (found[2] / "results.json").read_text().startswith(half[:200])
    assert stamps(found[1]) == first


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_between_steps_ends_with_its_summary(
    tmp_path, monkeypatch, capsys, number, code
):
    monkeypatch.setattr(Recorder, "begin", lambda *_: signal.raise_signal(number))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert sweep(monkeypatch, *LEARN, "seed=1,2", f"output_dir={tmp_path}") == code
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert "2 jobs: 0 done, 1 stopped, 1 not begun" in out
    assert "Traceback" not in out + err
    assert not list(tmp_path.glob(".sweep-*"))


def test_a_run_that_another_process_is_writing_is_left_to_it_and_the_others_are_done(
    tmp_path, monkeypatch, capsys
):
    words = [*HERE, "method=zeroshot", "seed=1,2", f"output_dir={tmp_path}"]
    assert sweep(monkeypatch, *words) == 0
    taken = runs(tmp_path)[1]
    for one in runs(tmp_path).values():
        (one / "finished.json").unlink()
    before = stamps(taken)
    with RunDirectory(taken) as theirs:
        theirs._take()
        assert sweep(monkeypatch, *words) == 2
        said = capsys.readouterr().out
        assert "2 jobs: 1 done, 1 failed" in said and "another process is writing this run" in said
        assert list(runs(tmp_path)) == [2] and stamps(taken) == before
    assert sweep(monkeypatch, *words) == 0
    assert list(runs(tmp_path)) == [1, 2]


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work_and_every_run_is_whole(tmp_path):
    """joblib in both: each run is done by one of them, and the other passes over it, finished or being written."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install 'clipkal[parallel]'")
    words = [*LEARN, "seed=1,2,3,4", f"output_dir={tmp_path}", "hydra/launcher=joblib", "threads=1"]
    command = [sys.executable, "-m", "clipkal", "-m", *words, "hydra.launcher.n_jobs=2"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": FROM_HERE}
    both = [subprocess.Popen(command, **pipe) for _ in range(2)]
    outputs = [one.communicate(timeout=400)[0] for one in both]
    learnt = sum(output.count("ID accuracy") for output in outputs)
    assert list(runs(tmp_path)) == [1, 2, 3, 4] and learnt == 4, outputs
    assert all(RunDirectory(run).verify() == [] for run in runs(tmp_path).values())
    assert not list(tmp_path.rglob("*.old-*")) and not list(tmp_path.rglob("*.part"))
    for one, output in zip(both, outputs, strict=True):
        assert one.returncode == (2 if "another process is writing" in output else 0), output
