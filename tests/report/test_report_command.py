"""`clipkal-report` from the outside: what it prints, writes and refuses."""

import re
from pathlib import Path

import pytest
from synthetic_runs import write_run

from clipkal.report.command import main


def test_writes_the_report_and_names_it(outputs: Path, tmp_path: Path, capsys) -> None:
    main([str(outputs), "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    assert "kalman" in out and "average of 2 datasets" in out and "36 runs" in out
    assert out.rstrip().splitlines()[-3:] == [
        f"open {tmp_path}/report/index.html",
        f"     {tmp_path}/report/table.md",
        f"     {tmp_path}/report/table.csv",
    ]
    assert len(list((tmp_path / "report" / "figures").glob("*.png"))) == 3 + 4 + 4
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<img") == 11 and page.count("data:image/png;base64,") == 11
    assert not re.search(r"<script|<link|@import|url\(|src=\"(?!data:)|https?://", page)
    assert page.count("<table>") == page.count("</table>") > 10


def test_default_place_is_not_read_back(tmp_path: Path, capsys) -> None:
    write_run(tmp_path, n=20)
    for _ in range(2):
        main([str(tmp_path), "--no-figures"])
    out = capsys.readouterr().out
    assert "1 run\n" in out and "one seed only" in out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["table.csv", "table.md"]


def test_sets_prints_every_ood_set(outputs: Path, tmp_path: Path, capsys) -> None:
    main([str(outputs / "digits"), "--no-figures", "--sets", "--out", str(tmp_path)])
    assert "photo" in capsys.readouterr().out
    main([str(outputs / "digits"), "--no-figures", "--out", str(tmp_path)])
    assert "photo" not in capsys.readouterr().out


def test_counts_what_it_leaves_out(tmp_path: Path, capsys) -> None:
    import shutil

    shutil.copytree(write_run(tmp_path, n=20), tmp_path / "copy")
    write_run(tmp_path, n=20, seed=2, finished=False)
    main([str(tmp_path), "--no-figures"])
    assert "1 run · 1 unfinished left out · 1 duplicate left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_nothing_there_is_one_line_and_exit_2(tmp_path: Path, capsys, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / name)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and not captured.out
    assert captured.err.startswith("clipkal-report: ") and captured.err.count("\n") == 1


def test_mixed_schemas_and_unwritable_places_are_one_line(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "runs", n=20)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "runs"), "--no-figures", "--out", str(tmp_path / "file")])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    write_run(tmp_path / "runs", n=20, seed=2, version=9)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "runs")])
    assert stop.value.code == 2 and "schema version 9" in capsys.readouterr().err


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "clipkal-report outputs" in text and "index.html" in text


def test_names_from_runs_are_escaped(tmp_path: Path, capsys) -> None:
    write_run(tmp_path, n=20, dataset="a[red]b&<i>")
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    assert "a[red]b&<i>" in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "a[red]b&amp;&lt;i&gt;" in page and "<i>" not in page
