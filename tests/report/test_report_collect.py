"""Which folders are runs, which are left out, and what is an error."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic_runs import write_run

from clipkal.errors import DataError
from clipkal.files import sha256
from clipkal.report.collect import collect


def test_finds_every_finished_run_once(outputs: Path) -> None:
    found = collect([outputs])
    assert len(found.runs) == 36 and not found.unfinished and not found.duplicates
    again = collect([outputs, outputs / "digits", outputs / "digits/mini/kalman/1shot-seed1"])
    assert [run.run_id for run in again.runs] == [run.run_id for run in found.runs]
    assert not again.duplicates  # the same folder twice is one run
    assert len(collect([outputs / "digits/mini/kalman/1shot-seed1"]).runs) == 1


def test_copies_of_a_run_count_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", n=20)
    shutil.copytree(path, tmp_path / "b" / "copy")
    found = collect([tmp_path])
    assert len(found.runs) == 1 and found.duplicates == [tmp_path / "b" / "copy"]


def test_unfinished_hidden_and_moved_runs_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, n=20)
    write_run(tmp_path, n=20, seed=2, finished=False)
    crashed = tmp_path / "digits/mini/kalman/4shot-seed3"
    crashed.mkdir()
    (crashed / "config.yaml").write_text("# clipkal run abc\n")
    (crashed / "finished.json").write_text("{}")  # a marker without results
    write_run(tmp_path, n=20, seed=4, folder="4shot-seed4.old-12345678")
    write_run(tmp_path / ".trash", n=20, seed=5)
    other = tmp_path / "notes"
    other.mkdir()
    (other / "config.yaml").write_text("not: ours\n")
    found = collect([tmp_path])
    assert [run.run["seed"] for run in found.runs] == [1]
    assert sorted(path.name for path in found.unfinished) == ["4shot-seed2", "4shot-seed3"]


def test_nothing_to_report_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no finished run under"):
        collect([tmp_path])
    write_run(tmp_path, n=20, finished=False)
    with pytest.raises(DataError, match="1 unfinished"):
        collect([tmp_path])


def test_other_schema_versions_and_damage_are_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, n=20)
    path = write_run(tmp_path, n=20, seed=2, version=2)
    assert [run.run["seed"] for run in collect([tmp_path]).runs] == [1]
    (line,) = collect([tmp_path]).damaged
    assert "seed2" in line and "schema version 2" in line
    results = json.loads((path / "results.json").read_text()) | {"schema_version": 1}
    for broken in (
        "{",
        "[]",
        '"text"',
        "[" * 100_000,
        json.dumps({"schema_version": 1}),
        json.dumps(results | {"run": {}}),
        json.dumps(results | {"sets": {"test": {"role": "id", "predictive": {"plugin": {"accuracy": 1}}}}}),
        json.dumps(results | {"detection": {"a": 1}}),
        json.dumps(results | {"x": float("nan")}),
    ):
        (path / "results.json").write_text(broken)
        (line,) = collect([tmp_path]).damaged
        assert "seed2/results.json" in line and "\n" not in line
    (path / "results.json").write_text(json.dumps(results))
    assert len(collect([tmp_path]).runs) == 2


def test_a_results_file_that_was_edited_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path, n=20)
    write_run(tmp_path, n=20, seed=2)
    marker = {"run_id": "x", "files": {"results.json": sha256(path / "results.json")}}
    (path / "finished.json").write_text(json.dumps(marker))
    assert len(collect([tmp_path]).runs) == 2
    with (path / "results.json").open("a") as file:
        file.write(" ")
    assert "its digest in finished.json is another" in collect([tmp_path]).damaged[0]
    (path / "finished.json").write_text("{")
    assert "seed1/finished.json cannot be read" in collect([tmp_path]).damaged[0]
