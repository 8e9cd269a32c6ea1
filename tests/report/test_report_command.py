"""`clipkal-report` from the outside: what it prints, writes and refuses."""

import argparse
import html
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from synthetic_runs import write_run

from clipkal.commandline import status_of
from clipkal.report.command import main
from clipkal.report.table import LEGEND

FILES = ["index.html", "table.md", "table.tex", "table.csv", "seeds.csv", "paired.csv"]


def test_writes_the_report_and_names_it(outputs: Path, tmp_path: Path, capsys) -> None:
    main([str(outputs), "--out", str(tmp_path / "report")])
    out = capsys.readouterr().out
    assert "kalman" in out and "average of 2 datasets" in out and "36 runs" in out
    first, *others = out.rstrip().splitlines()[-len(FILES) :]
    assert first == f"open {tmp_path}/report/index.html"
    assert [line.strip() for line in others] == [f"{tmp_path}/report/{name}" for name in FILES[1:]]
    assert len(list((tmp_path / "report" / "figures").glob("*.png"))) == 4 + 5 + 5
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<img") == 14 and page.count("data:image/png;base64,") == 14
    assert not re.search(r"<script src|<link|@import|url\(|src=\"(?!data:)|https?://", page)
    assert page.count("<table>") == page.count("</table>") > 10
    for text in (
        f"clipkal-report {outputs} --out",
        "2 datasets",
        "digits, shapes",
        "1, 2, 3",
        "adamw",
        "clipkal 0",
    ):
        assert text in page.partition("<h2")[0], text


def test_default_place_is_not_read_back(tmp_path: Path, capsys) -> None:
    write_run(tmp_path, n=20)
    for _ in range(2):
        main([str(tmp_path), "--no-figures"])
    out = capsys.readouterr().out
    assert "1 run\n" in out and "one seed only" in out
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(FILES[1:])


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
    main([str(tmp_path / "runs"), "--no-figures"])
    captured = capsys.readouterr()
    assert "1 run · 1 unreadable left out" in captured.out
    assert captured.err.startswith("clipkal-report: left out: ") and "schema version 9" in captured.err
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "runs" / "digits/mini/kalman/4shot-seed2")])
    assert stop.value.code == 2 and "schema version 9" in capsys.readouterr().err


def test_help_teaches(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "clipkal-report outputs" in text and "index.html" in text


NASTY = [
    "a$b$c",
    "$\\frac{$",
    "=1+1",
    "a|b",
    "[red]x[/]",
    ":smile:",
    "中文",
    "_x_*y*",
    "`z`",
    "x\x1b[31m\n\udc80",
    "w" * 70,
]


def test_nasty_names_reach_every_output_whole(tmp_path: Path, capsys) -> None:
    for seed in (1, 2):
        for index, name in enumerate(NASTY):
            sets = ("test", *NASTY) if index == 0 else ("test", "sketch")
            folder = tmp_path / "runs" / f"{index}-{seed}"
            write_run(
                folder, n=20, dataset="d", method=name, backbone="$m$", seed=seed, sets=sets, folder="r"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that no font has
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    captured = capsys.readouterr()
    shown = [*NASTY[:9], "x\\x1b[31m \\udc80"]
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    for name in shown:
        assert name in captured.out and html.escape(name) in page
    assert "\x1b" not in captured.out and not captured.err
    for line in (tmp_path / "report" / "table.md").read_text(encoding="utf-8").splitlines():
        assert not re.search(r"(?<!\\)[<>$`\[\]]", line.replace(LEGEND, ""))
    frame = pd.read_csv(tmp_path / "report" / "table.csv")
    assert {"'=1+1", "a|b", "中文"} <= set(frame.method) and {"'=1+1", "w" * 70} <= set(frame.set)
    numbers = frame.select_dtypes("number").columns
    assert "mean" in numbers and "ci95" in numbers


def test_figures_of_names_that_differ_in_odd_characters_do_not_overwrite_each_other(
    tmp_path: Path, capsys
) -> None:
    for name in ("a b", "a-b", "中", "文", "x" * 200):
        write_run(tmp_path / name[:3] / "r", n=20, dataset=name, sets=("test",), folder="r")
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "report" / "figures").iterdir())) == page.count("<img")


def test_a_terminal_that_lacks_letters_does_not_end_the_report(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, dataset="é中")
    command = [sys.executable, "-m", "clipkal.report.command", str(tmp_path), "--no-figures"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"1 run" in done.stdout, done.stderr


def test_names_from_runs_are_escaped(tmp_path: Path, capsys) -> None:
    write_run(tmp_path, n=20, dataset="a[red]b&<i>")
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    assert "a[red]b&<i>" in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "a[red]b&amp;&lt;i&gt;" in page and "<i>" not in page


def test_a_reader_that_has_seen_enough_does_not_lose_the_report(tmp_path: Path) -> None:
    """As `clipkal-report outputs | head -1`: what was asked for is written all the same."""
    write_run(tmp_path, n=20)
    words = [sys.executable, "-m", "clipkal.report.command", str(tmp_path), "--no-figures", "--sets"]
    reader, write = os.pipe()
    os.close(reader)
    found = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "report" / "paired.csv").exists()


def test_a_full_disk_is_told_with_the_place_and_the_way_out(tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_run(tmp_path, n=20)
    monkeypatch.setattr("clipkal.files.write_text", full)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--no-figures"])
    said = f"{tmp_path}/report: cannot be written (No space left on device); free space there or give another folder with --out"
    assert capsys.readouterr().err == f"clipkal-report: {said}\n"


def test_a_closed_output_is_no_traceback(monkeypatch) -> None:
    """Schedulers and `>&-` start a command without one: Python's sys.stdout is then None."""
    monkeypatch.setattr(sys, "stdout", None)
    assert status_of("clipkal-report", lambda _: sys.stdout.write("a table") * 0, argparse.Namespace()) == 0
