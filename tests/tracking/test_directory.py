"""The run directory: what it says about itself, and that nothing in it is ever half-written or lost."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from omegaconf import OmegaConf

from clipkal import files
from clipkal.errors import ClipkalError
from clipkal.tracking import RunDirectory
from clipkal.tracking.directory import SMALL, State
from clipkal.tracking.inputs import inputs_of

YAML = "seed: 1\nfewshot:\n  shots: 4\n"
A, B = "a" * 16, "b" * 16


def finished(path: Path, run_id: str = A, yaml: str = YAML) -> None:
    with RunDirectory(path) as directory:
        assert directory.begin(run_id, yaml).status == "new"
        directory.trim(0)
        directory.log(1, "val", "id", "accuracy", 0.5)
        directory.write_results({"sets": {}})
        directory.finish({"accuracy": 0.5})


def rows(path: Path) -> list[str]:
    return (path / "metrics.csv").read_text().splitlines()[1:]


# -- states --------------------------------------------------------------------------------------------------


def test_new(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path / "r").state() == State("new")
    (tmp_path / "r").mkdir()
    assert RunDirectory(tmp_path / "r").state() == State("new")


def test_same_finished_run_is_left_untouched(tmp_path: Path) -> None:
    finished(tmp_path / "r")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with RunDirectory(tmp_path / "r") as directory:
        state = directory.begin(A, YAML)
    assert (state.status, state.run_id, state.differs) == ("finished", A, [])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_other_finished_run_is_moved_aside_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r"
    other = YAML.replace("4", "8") + "output_dir: elsewhere\n"
    for yaml, run_id in ((YAML, A), (other, B), (YAML, A)):
        caplog.clear()
        finished(path, run_id, yaml)
    names = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert names == ["r", "r.old-aaaaaaaa", "r.old-bbbbbbbb"]
    assert RunDirectory(tmp_path / "r.old-aaaaaaaa").state().run_id == A
    (record,) = caplog.records
    assert "fewshot.shots: 8 → 4" in record.getMessage() and "output_dir" not in record.getMessage()
    finished(path, B, other)
    assert (tmp_path / "r.old-aaaaaaaa-2").is_dir()


def test_state_says_what_differs(tmp_path: Path) -> None:
    finished(tmp_path / "r")
    assert RunDirectory(tmp_path / "r").state("seed: 2\nfewshot: {shots: 4}").differs == ["seed: 1 → 2"]
    assert RunDirectory(tmp_path / "r").state("{broken").differs == []


def test_crashed_run_is_kept_for_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        (path / "checkpoint.a.pt").write_text("state")
        (path / "figures").mkdir()
        (path / "figures" / ".x.png.abc.part").write_text("half")
    with RunDirectory(path) as directory:
        state = directory.begin(A, YAML)
        assert (state.status, state.run_id) == ("unfinished", A)
    assert (path / "checkpoint.a.pt").read_text() == "state"
    assert not list(path.rglob("*.part"))


def test_crashed_run_of_another_configuration_is_moved_aside(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "r") as directory:
        directory.begin(A, YAML)
    with RunDirectory(tmp_path / "r") as directory:
        assert directory.begin(B, YAML + "lr: 1").status == "new"
    assert (tmp_path / "r.old-aaaaaaaa" / "config.yaml").exists()


HOSTILE = [
    "", "{", "[]", "{}", '"x"', "\0\0", "[" * 100_000, '{"run_id": 1}',
    *(f'{{"run_id": "{A}", {rest}}}' for rest in (
        '"files": []', '"files": {"a": 1}', '"files": {"a\\u0000": "b"}', '"sizes": {"a": "1"}',
        '"summary": 1', '"summary": {"val_nll": "x"}', '"inputs": 1', '"inputs": {"a": {}}',
        '"inputs": {"a": {"files": 1, "bytes": 1, "stamps": null, "contents": null}}',
    )),
]  # fmt: skip


@pytest.mark.parametrize("marker", HOSTILE)
def test_damaged_marker_means_unfinished(
    tmp_path: Path, marker: str, caplog: pytest.LogCaptureFixture
) -> None:
    finished(tmp_path / "r")
    (tmp_path / "r" / "finished.json").write_text(marker)
    with RunDirectory(tmp_path / "r") as directory:
        assert directory.begin(A, YAML).status == "unfinished"
        assert not (tmp_path / "r" / "finished.json").exists()
    assert [m for m in caplog.messages if "finished.json is damaged; the run is done again" in m]


BIG = b"x" * 2 * SMALL
DAMAGE = {
    "edited": lambda path: path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9")),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["results.json", "metrics.csv", "figures/big.png"])
def test_a_damaged_finished_run_is_moved_aside_and_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        directory.log(1, "val", "id", "accuracy", 0.5)
        directory.write_results({"accuracy": 0.5})
        files.write_text(path / "figures" / "big.png", "")
        (path / "figures" / "big.png").write_bytes(b"0.5" + BIG)
        directory.finish()
    DAMAGE[damage](path / name)
    with RunDirectory(path) as directory:
        state = directory.begin(A, YAML)
        if (name, damage) == ("figures/big.png", "edited"):  # same size: only a full check would see it
            assert state.status == "finished" and directory.verify() == [name]
            return
        assert state.status == "new" and not (path / "results.json").exists()
    assert (tmp_path / "r.old-aaaaaaaa").is_dir()
    (record,) = caplog.records
    assert f"has damaged files ({name}); moved to r.old-aaaaaaaa" in record.getMessage()


@pytest.mark.parametrize("version", [0, 2])
def test_a_finished_run_of_another_schema_is_moved_aside_and_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    finished(tmp_path / "r")
    marker = tmp_path / "r" / "finished.json"
    files.write_json(marker, json.loads(marker.read_text()) | {"schema_version": version})
    with RunDirectory(tmp_path / "r") as directory:
        assert directory.begin(A, YAML).status == "new"
    assert (tmp_path / "r.old-aaaaaaaa" / "finished.json").is_file()
    (record,) = caplog.records
    assert f"has schema version {version}, not 1; moved to r.old-aaaaaaaa" in record.getMessage()


def test_a_run_that_was_made_before_sizes_and_inputs_were_noted_is_skipped(tmp_path: Path) -> None:
    finished(tmp_path / "r")
    marker = json.loads((tmp_path / "r" / "finished.json").read_text())
    del marker["sizes"], marker["inputs"]
    files.write_json(tmp_path / "r" / "finished.json", marker)
    assert RunDirectory(tmp_path / "r").begin(A, YAML).status == "finished"


def test_a_run_of_other_data_is_moved_aside_and_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, data = tmp_path / "r", tmp_path / "data" / "birds.npz"
    files.write_text(data, "old")
    yaml = f"seed: 1\ndata: {{root: {data.parent}, verify: false}}\n"
    record = inputs_of(OmegaConf.create(yaml)).record([data])
    with RunDirectory(path) as directory:
        directory.begin(A, yaml)
        directory.finish({}, record)
    assert RunDirectory(path).begin(A, yaml).status == "finished"
    assert RunDirectory(path).begin(A, yaml.replace(str(data.parent), "/elsewhere")).status == "finished"
    data.write_text("newer")
    with RunDirectory(path) as directory:
        assert directory.begin(A, yaml).status == "new"
    (message,) = caplog.messages
    assert "was made from other data or weights (birds.npz held 1 file of 3 bytes and now" in message
    assert message.count("\n") == 0 and (tmp_path / "r.old-aaaaaaaa").is_dir()


def test_finish_lists_every_result_and_verify_checks_it(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        directory.log(0, "val", "id", "nll", 1.0)
        directory.write_results({})
        (path / "wandb").mkdir()
        (path / "wandb" / "x").write_text("")
        (path / "checkpoint.a.pt").write_text("")
        directory.finish({"accuracy": torch.tensor(0.5)})
    marker = json.loads((path / "finished.json").read_text())
    assert sorted(marker["files"]) == ["config.yaml", "metrics.csv", "results.json"]
    assert marker["files"]["results.json"] == files.sha256(path / "results.json")
    assert marker["run_id"] == A and marker["summary"] == {"accuracy": 0.5} and marker["versions"]["torch"]
    assert RunDirectory(path).verify() == [] and RunDirectory(path).summary() == {"accuracy": 0.5}
    assert RunDirectory(tmp_path / "none").summary() == {}
    (path / "metrics.csv").write_text("changed")
    (path / "config.yaml").unlink()
    assert sorted(RunDirectory(path).verify()) == ["config.yaml", "metrics.csv"]


# -- one process at a time -----------------------------------------------------------------------------------

HOLDER = """
import sys
from clipkal.tracking.directory import RunDirectory
directory = RunDirectory(sys.argv[1])
print(directory.begin(sys.argv[2], "seed: 1").status, flush=True)
sys.stdin.read()
"""


def test_second_process_gets_one_line_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "r"
    command = [sys.executable, "-c", HOLDER, str(path), A]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "new\n"
        with pytest.raises(ClipkalError, match=r"another process is writing this run.*output_dir"):
            RunDirectory(path).begin(A, YAML)
        holder.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    with RunDirectory(path) as directory:
        assert directory.begin(A, "seed: 1").status == "unfinished"


def test_one_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "r") as first:
        first.begin(A, YAML)
        with pytest.raises(ClipkalError, match="another process"):
            RunDirectory(tmp_path / "r").begin(A, YAML)
    with RunDirectory(tmp_path / "r") as second:
        second.begin(A, YAML)


# -- metrics.csv ---------------------------------------------------------------------------------------------


def test_rows_read_back_exactly(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "r") as directory:
        directory.begin(A, YAML)
        directory.log(3, "test", 'a,"b"\nc\u2028', "nll", 0.1 + 0.2)
        directory.log_all(4, "test", "id", {"x": float("nan"), "y": torch.tensor(2)})  # type: ignore[dict-item]
    with RunDirectory(tmp_path / "r") as directory:
        directory.begin(A, YAML)
    with (tmp_path / "r" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        header, *table = csv.reader(file)
    assert header == ["step", "split", "dataset", "metric", "value"]
    assert table[0] == ["3", "test", 'a,"b" c\u2028', "nll", repr(0.1 + 0.2)]
    assert [row[4] for row in table[1:]] == ["nan", "2.0"]


@pytest.mark.parametrize(
    "tail", ["5", "5,val,id,acc", "5,val,id,acc,0.", '5,"val', "\0" * 40, "5,val,id,acc,\n"]
)
def test_half_written_line_is_dropped(tmp_path: Path, tail: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        directory.log(0, "val", "id", "acc", 0.25)
    with (path / "metrics.csv").open("a") as file:
        file.write(tail)
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        directory.log(1, "val", "id", "acc", 0.5)
    assert rows(path) == ["0,val,id,acc,0.25", "1,val,id,acc,0.5"]
    assert "dropped 1 half-written" in caplog.text


def test_every_truncation_of_the_file_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        directory.log_all(0, "val", "id", {"a": 0.125, "b": 2.5})
    whole = (path / "metrics.csv").read_bytes()
    for size in range(len(b"step,split,dataset,metric,value\n"), len(whole)):
        (path / "metrics.csv").write_bytes(whole[:size])
        with RunDirectory(path) as directory:
            directory.begin(A, YAML)
        assert (path / "metrics.csv").read_bytes() == whole[: whole[:size].rindex(b"\n") + 1]


def test_resume_trims_rows_that_come_again(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "r") as directory:
        directory.begin(A, YAML)
        for step in range(12):
            directory.log(step, "train", "id", "loss", step)
        directory.trim(9)
        directory.log(9, "train", "id", "loss", -1)
    assert [row.split(",")[0] for row in rows(tmp_path / "r")] == [str(i) for i in range(10)]
    assert rows(tmp_path / "r")[-1] == "9,train,id,loss,-1.0"


def test_foreign_metrics_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "metrics.csv").write_text("my,table\n1,2\n")
    with pytest.raises(ClipkalError, match=r"not a metrics file.*output_dir"):
        RunDirectory(tmp_path / "r").begin(A, YAML)
    assert (tmp_path / "r" / "metrics.csv").read_text() == "my,table\n1,2\n"


class FullDisk:
    """A file on a disk that takes three more bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 3

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room, size = 0, self.room
        return self.file.write(data[:size])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_full_disk_takes_back_a_half_row(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "r")
    directory.begin(A, YAML)
    directory.log(0, "val", "id", "acc", 0.25)
    real = directory._metrics._file
    directory._metrics._file = FullDisk(real)  # type: ignore[assignment]
    with pytest.raises(ClipkalError, match=r"metrics.csv: cannot be written \(No space left.*output_dir="):
        directory.log(1, "val", "id", "acc", 0.5)
    directory._metrics._file = real
    directory.log(1, "val", "id", "acc", 0.75)
    directory.close()
    assert rows(tmp_path / "r") == ["0,val,id,acc,0.25", "1,val,id,acc,0.75"]


# -- other files ---------------------------------------------------------------------------------------------


def test_everything_a_run_leaves_behind(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from safetensors.torch import load_file

    path = tmp_path / "r"
    with RunDirectory(path) as directory:
        directory.begin(A, YAML)
        directory.write_results({"schema_version": 2, "acc": torch.tensor(0.5), "nan": float("nan")})
        directory.write_shots({"ids": ("a.png", "ü.png")})
        directory.write_predictions(pa.table({"id": ["a", "b"], "p": [0.25, 0.75]}))
        base = torch.arange(6.0)
        directory.save_tensors("posterior", {"a": base[:2], "b": base, "c": base.reshape(2, 3).T}, {"C": 2})
        directory.save_figure("reliability", Figure())
        directory.finish()
    results = json.loads((path / "results.json").read_text())
    assert results == {"schema_version": 2, "run_id": A, "acc": 0.5, "nan": None}
    assert json.loads((path / "shots.json").read_text())["ids"] == ["a.png", "ü.png"]
    assert pd.read_parquet(path / "predictions.parquet").p.tolist() == [0.25, 0.75]
    assert torch.equal(load_file(path / "posterior.safetensors")["c"], base.reshape(2, 3).T)
    assert (path / "figures" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert (path / "config.yaml").read_text() == f"# clipkal run {A}\n{YAML}"
    assert "figures/reliability.png" in json.loads((path / "finished.json").read_text())["files"]
    assert not list(path.rglob("*.part"))


WRITES = {
    "config": lambda d: d.write_config(YAML),
    "results": lambda d: d.write_results({}),
    "shots": lambda d: d.write_shots({}),
    "predictions": lambda d: d.write_predictions(pa.table({"a": [1]})),
    "tensors": lambda d: d.save_tensors("adapter", {"w": torch.ones(2)}, {}),
    "finish": lambda d: d.finish({}),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_refusing_disk_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    directory = RunDirectory(tmp_path / "r")
    directory.begin(A, YAML)
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ClipkalError) as caught:
        WRITES[name](directory)
    monkeypatch.undo()
    line = str(caught.value)
    assert (
        os.strerror(code) in line
        and str(tmp_path / "r") in line
        and "output_dir=" in line
        and "\n" not in line
    )
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before
    directory.close()


def test_output_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipkalError, match=r"file.*cannot be written.*output_dir="):
        RunDirectory(tmp_path / "file" / "r").begin(A, YAML)
    with pytest.raises(ClipkalError, match=r"is a file.*output_dir="):
        RunDirectory(tmp_path / "file").begin(A, YAML)
    for long in ("x" * 300, "/".join(["x" * 200] * 30)):
        with pytest.raises(ClipkalError, match=r"cannot be written \(File name too long.*output_dir="):
            RunDirectory(tmp_path / long / "r").begin(A, YAML)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_is_one_line_and_a_finished_run_there_is_skipped(tmp_path: Path) -> None:
    finished(tmp_path / "r")
    tmp_path.chmod(0o500)
    try:
        assert RunDirectory(tmp_path / "r").begin(A, YAML).status == "finished"
        with pytest.raises(ClipkalError, match=r"cannot be written \(Permission denied.*output_dir="):
            RunDirectory(tmp_path / "q").begin(A, YAML)
    finally:
        tmp_path.chmod(0o700)


def test_names_that_are_no_text_reach_every_file(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    with RunDirectory(tmp_path / "r") as directory:
        directory.begin(A, f"seed: 1\nname: {name}\n")
        directory.log(1, "val", name, "accuracy", 0.5)
        directory.write_results({"sets": {name: 1}})
        directory.write_shots({"train": [name]})
        directory.finish()
    assert json.loads((tmp_path / "r" / "shots.json").read_text())["train"] == [name]
    assert json.loads(directory.results_path.read_text())["sets"] == {name: 1}
    assert rows(tmp_path / "r") == ["1,val,\\udcff.png,accuracy,0.5"]


def test_failed_begin_lets_go_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ClipkalError):
        RunDirectory(tmp_path / "r").begin(A, YAML)
    monkeypatch.undo()
    with RunDirectory(tmp_path / "r") as directory:
        directory.begin(A, YAML)


def test_importing_the_room_is_light() -> None:
    heavy = ("torch", "wandb", "pandas", "numpy", "matplotlib")
    code = f"import sys, clipkal.tracking; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
