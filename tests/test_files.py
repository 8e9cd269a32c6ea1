"""Files are whole or absent, whatever fails while they are written."""

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from clipkal import files


def parts(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_path_creates_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "a" / "b.txt") as temporary:
        assert temporary.parent == tmp_path / "a"
        temporary.write_text("new")
    assert parts(tmp_path / "a") == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_failed_write_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(type(error)), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert parts(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("owner, call", [(os, "fsync"), (Path, "replace"), (Path, "chmod")])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_fault_after_the_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(OSError, match=os.strerror(code)):
        files.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert parts(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_json_writes_what_json_does_not_know_as_null(tmp_path: Path) -> None:
    value = {"nan": float("nan"), "inf": [float("-inf"), 1.5], 3: ("ä", True, None)}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"nan": None, "inf": [None, 1.5], "3": ["ä", True, None]}
    assert "ä" in text


def test_unserialisable_json_keeps_the_old_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", object())
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf")
    assert files.digest("ab", "c") != files.digest("a", "bc") != files.digest("abc")
    assert files.digest("ä") == files.digest("ä".encode())


def test_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def second() -> None:
        try:
            with files.locked(tmp_path / "x" / "cache", timeout=0.1):
                pass
        except Timeout as error:
            failures.append(error)

    with files.locked(tmp_path / "x" / "cache"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(failures) == 1
    second()
    assert len(failures) == 1


def test_stamps_tell_size_and_time_or_contents_and_never_wait(tmp_path: Path) -> None:
    names = [f"{i:03d}" for i in range(600)]  # more than one thread takes
    for name in names:
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    odd = ["absent", "pipe", "nul\0", "\ud800", "."]
    plain = files.stamps(tmp_path, [*names, *odd])
    assert plain[:600] == [f"3:{(tmp_path / name).stat().st_mtime_ns}" for name in names]
    contents = files.stamps(tmp_path, [*names, *odd], contents=True)
    assert contents[:600] == [f"3:{files.sha256(tmp_path / name)}" for name in names]
    assert plain[600:] == contents[600:] == [None] * 5


def test_names_that_are_no_text_are_written_and_digested(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"\udcff": "\udcfe"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"\udcff": "\udcfe"}
    assert files.digest("\udcff") != files.digest("\udcfe")
    with files.atomic_path(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("a name as long as names can be")
    assert (tmp_path / ("x" * 255)).is_file()
