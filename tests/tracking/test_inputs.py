"""What a finished run notices of its data and weights, and what only with `data.verify=true`."""

import os
import shutil
from pathlib import Path

import pytest

from clipkal.backbones.sources import MINI_FOLDER
from clipkal.tracking import inputs
from clipkal.tracking.inputs import PACKAGE, Inputs, is_record


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("birds/a/1.bmp", "birds/a/2.bmp", "birds/b/1.bmp", "weights.pt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 9)
    return root


def rewrite(path: Path) -> None:
    """Other bytes, same size, same time of change."""
    status, size = path.stat(), path.stat().st_size
    path.write_bytes(b"!" * size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "added": lambda birds: (birds / "b" / "9.bmp").write_bytes(b"x"),
    "removed": lambda birds: (birds / "b" / "1.bmp").unlink(),
    "renamed": lambda birds: (birds / "a" / "1.bmp").rename(birds / "a" / "3.bmp"),
    "a class renamed": lambda birds: (birds / "a").rename(birds / "c"),
    "longer": lambda birds: (birds / "a" / "1.bmp").write_bytes(b"x" * 999),
    "other pixels": lambda birds: (birds / "a" / "1.bmp").write_bytes(b"x" * len("birds/a/1.bmp" * 9)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("small", [1 << 20, 0])
def test_a_change_is_noticed(data: Path, change: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SMALL", small)
    look = Inputs(data)
    record = look.record([data / "birds", data / "weights.pt", data / "absent"])
    assert is_record(record) and list(record) == ["birds", "weights.pt"] and look.changes(record) == []
    os.utime(data / "birds" / "a" / "1.bmp", ns=(5, 5))
    CHANGES[change](data / "birds")
    (line,) = look.changes(record)
    assert line.startswith("birds ") and "\n" not in line


def test_what_is_touched_or_copied_is_the_same_where_its_contents_are_known(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [data / "birds", data / "weights.pt"]
    record = Inputs(data).record(places)
    moved = shutil.copytree(data, tmp_path / "moved", copy_function=shutil.copyfile)  # other times of change
    assert Inputs(moved).changes(record) == []
    monkeypatch.setattr(inputs, "SMALL", 0)  # a larger folder: only files by themselves are digested
    (line,) = Inputs(moved).changes(Inputs(data).record(places))
    assert line == "birds has files that were changed, renamed or copied anew"
    assert Inputs(moved).changes(Inputs(data, verify=True).record(places)) == []


def test_pixels_rewritten_in_place_are_seen_by_their_contents_only(data: Path) -> None:
    places = [data / "birds", data / "weights.pt"]
    record = Inputs(data).record(places)
    rewrite(data / "birds" / "a" / "1.bmp")
    rewrite(data / "weights.pt")
    assert Inputs(data).changes(record) == []
    assert [line.split()[0] for line in Inputs(data, verify=True).changes(record)] == ["birds", "weights.pt"]


def test_data_that_are_gone_say_nothing(data: Path, tmp_path: Path) -> None:
    record = Inputs(data).record([data / "birds", data / "weights.pt"])
    assert Inputs(tmp_path / "nowhere", verify=True).changes(record) == []


def test_what_is_no_part_of_the_data_is_left_out(data: Path) -> None:
    look = Inputs(data, without=[data / "birds" / "outputs"])
    record = look.record([data / "birds"])
    (data / "birds" / ".DS_Store").write_text("x")
    (data / "birds" / "outputs" / "digits").mkdir(parents=True)
    (data / "birds" / "outputs" / "digits" / "x").write_text("x")
    (data / "birds" / "a" / "loop").symlink_to(data / "birds", target_is_directory=True)
    assert look.changes(record) == [] and record["birds"]["files"] == 3


def test_of_very_many_files_a_sample_is_looked_at(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SAMPLE", 100)
    folder = data / "many"
    folder.mkdir()
    for i in range(350):
        (folder / f"{i:03d}").touch()
    look = Inputs(data)
    record = look.record([folder])
    assert record["many"]["contents"] is None and look.unknown(record) == ["many"]
    (folder / "001").write_text("between the samples")
    assert look.changes(record) == []
    (folder / "004").write_text("in the sample")
    assert len(look.changes(record)) == 1
    record = look.record([folder])
    (folder / "349").rename(folder / "350")  # names are always looked at
    assert len(look.changes(record)) == 1


def test_what_comes_with_the_package_is_named_by_its_place_there(tmp_path: Path) -> None:
    weights = MINI_FOLDER / "open_clip_model.safetensors"
    (name,) = Inputs(tmp_path).record([weights])
    assert name == f"{PACKAGE}backbones/mini/open_clip_model.safetensors"
