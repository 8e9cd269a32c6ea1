"""The table of jobs while a sweep runs: what it counts and foresees, and that a terminal shows it whole."""

import io
import logging
import os
import pty
import re
import sys
import threading
from contextlib import contextmanager

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from rich.console import Console

from clipkal import cli
from clipkal.config import conf_dir, register
from clipkal.recording import sweep_live
from clipkal.recording.sweep_notes import NOTES, Jobs, Reader, note, planned

ERASE = "\x1b[2K"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
QUICK = ["dataset=digits", "dataset.ood=[noisy]", "tracking=disabled", "method=zeroshot"]


def told(*notes):
    """Jobs that were told (status, job, at, process)."""
    jobs = Jobs(total=10, keys=["seed"])
    for status, job, at, process in notes:
        jobs.take({"status": status, "job": job, "at": at, "process": process, "reason": "no such file"})
    return jobs


TWO = [
    ("done", "seed=0", 100.0, 7),  # finished before
    ("began", "seed=1", 100.0, 7), ("began", "seed=2", 101.0, 8),
    ("done", "seed=1", 160.0, 7), ("began", "seed=3", 161.0, 7),
    ("failed", "seed=2", 162.0, 8), ("began", "seed=4", 163.0, 8),
    ("done", "seed=4", 172.0, 8), ("left out", "seed=9", 172.0, 8),
]  # fmt: skip


# -- what is known of the jobs --


def test_jobs_are_counted_by_what_became_of_them():
    jobs = told(*TWO)
    assert jobs.said() == "3 done (1 before), 1 failed, 1 running, 5 not begun"
    assert jobs.said("stopped") == "3 done (1 before), 1 failed, 1 stopped, 5 not begun"
    assert (jobs.ended, list(jobs.running), jobs.failures) == (5, ["seed=3"], [("seed=2", "no such file")])
    assert Jobs().said() == "0 done"


def test_the_time_left_is_that_of_jobs_with_nothing_to_import_at_as_many_at_once_as_there_were():
    assert told(*TWO[:3]).seconds_left(130.0) is None, "one that was finished before tells nothing"
    first = told(*TWO[:5])  # 60 s, the only one; 8 jobs, of which two have had 29 and 0 s
    assert first.seconds_left(161.0) == pytest.approx((60 * 8 - 60) / 2)
    jobs = told(*TWO[:-1])  # 10 s from the end before it in process 8; of seed=3 all 10 s are spent
    assert jobs.seconds_left(180.0) == pytest.approx((10 * 6 - 10) / 2)
    jobs.total = None
    assert jobs.seconds_left(180.0) is None


def test_notes_are_read_on_from_where_they_were_whole(tmp_path, monkeypatch):
    path = tmp_path / "notes"
    read = Reader(path)
    assert list(read()) == []
    note("began", "outside of a sweep")
    assert not path.exists()
    monkeypatch.setenv(NOTES, str(path))
    note("began", "seed=1")
    assert [(one["status"], one["job"], one["process"]) for one in read()] == [
        ("began", "seed=1", os.getpid())
    ]
    whole = b'{"status": "said"}\n{"status": "said"}\n'
    for part, count in ((whole[:5], 0), (whole[5:25], 1), (whole[25:], 1)):
        with path.open("ab") as file:
            file.write(part)
        assert len(list(read())) == count


@pytest.mark.parametrize(
    ("words", "count", "keys"),
    [
        (["seed=1,2,3", "method=kalman,adamw", "threads=1"], 6, ["seed", "method"]),
        (["seed=range(1,5)"], 4, ["seed"]),
        (["threads=1"], 1, []),
        (
            ["hydra/sweeper=tune", "hydra.sweeper.n_trials=7", "optimizer.prior=interval(1,9)"],
            7,
            ["optimizer.prior"],
        ),
    ],
)
def test_how_many_jobs_there_will_be_is_known_before_the_first(words, count, keys):
    if any("tune" in word for word in words):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="pip install 'clipkal[tune]'")
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = GlobalHydra.instance().config_loader().load_configuration("config", words, RunMode.MULTIRUN)
        assert planned(config) == (count, keys)


# -- what is shown --


def drawn(jobs, now, width=60):
    console = Console(file=io.StringIO(), width=width, height=40)
    console.print(sweep_live.table(jobs, now))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_table_has_counts_time_left_the_jobs_that_run_and_the_last_failures():
    more = [("failed", f"a=1 seed={i}", 173.0, 8) for i in (5, 6, 7)]
    head, counts, running, *failed = drawn(told(*TWO, *more), 180.0, width=66)
    assert re.split("  +", head)[1:] == ["8 of 10 jobs", "about 5 s left"]
    assert counts == "3 done (1 before), 4 failed, 1 running, 2 not begun"
    assert running.split() == ["19", "s", "seed=3"]
    assert [line.split()[:3] for line in failed] == [["failed", f"seed={i}:", "no"] for i in (5, 6, 7)]
    assert all(len(line) <= 20 for line in drawn(told(*TWO, *more), 180.0, 20)[2:]), "one line each"


def test_a_table_of_many_running_jobs_stays_small():
    lines = drawn(told(*[("began", f"seed={i}", float(i), i) for i in range(30)]), 90.0)
    assert len(lines) == 2 + sweep_live.MOST_RUNNING + 1
    assert lines[2].split() == ["90", "s", "seed=0"]
    assert lines[-1].strip() == "… and 22 more"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min")],
)
def test_times_are_told_as_one_would(seconds, words):
    assert sweep_live.span(seconds) == words


# -- a whole sweep --


def sweep(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["clipkal", "-m", *QUICK, *words])
    with pytest.raises(SystemExit):
        cli.main()


@contextmanager
def terminal(monkeypatch):
    """Puts standard output and error on a terminal for the block; yields a list that holds what it was shown afterwards."""
    ours, theirs = pty.openpty()
    shown, found = bytearray(), []

    def drain():
        while not shown.endswith(b"<end>"):
            shown.extend(os.read(ours, 65536))

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    with os.fdopen(theirs, "w") as file, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(sys, "stdout", file)
        patch.setattr(sys, "stderr", file)
        yield found
        file.write("<end>")
        file.flush()
        reader.join(10)
    os.close(ours)
    found.append(shown.decode().replace("\r\n", "\n"))


def test_on_a_terminal_the_table_is_drawn_and_what_jobs_say_stands_above_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_live, "EVERY", 0.05)
    with terminal(monkeypatch) as found:
        sweep(monkeypatch, "seed=1,2", "fewshot.shots=1,9999", f"output_dir={tmp_path}")
    shown = found[0]
    assert shown.count(ERASE) > 3 and " of 4 jobs" in shown
    assert re.search(
        r"failed +seed=1 fewshot.shots=9999: dataset 'digits': class 'zero'", ESCAPES.sub("", shown)
    )
    last = ESCAPES.sub("", shown[shown.rindex(ERASE) :])
    assert "4 jobs: 2 done, 2 failed" in last and "2 not begun" not in last
    said = [line for line in ESCAPES.sub("", shown).splitlines() if "ID accuracy" in line]
    assert len(said) == 2 and all(line.lstrip().startswith(str(tmp_path)) for line in said)
    assert "Launching" not in shown and "#0" not in shown
    assert shown.rfind("\x1b[?25l") < shown.rfind("\x1b[?25h"), "the cursor is there at the end"
    assert sweep_live.TABLE not in os.environ
    assert {logging.getLogger(name).level for name in sweep_live.LAUNCHERS} == {logging.NOTSET}
    assert not list(tmp_path.glob(".sweep-*"))


def test_without_a_terminal_there_is_a_plain_line_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_live, "PLAIN", 0.05)
    sweep(monkeypatch, "seed=1,2", "fewshot.shots=1,9999", f"output_dir={tmp_path}")
    out = capsys.readouterr().out
    assert re.search(r"^sweep: \d of 4 jobs: \d done, .*not begun", out, re.M)
    assert out.count("ID accuracy") == 2 and "Launching 4 jobs" in out
    assert "\x1b" not in out


def test_a_table_that_cannot_be_drawn_ends_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_live, "EVERY", 0.05)
    monkeypatch.setattr(sweep_live, "table", lambda *_: 1 / 0)
    with terminal(monkeypatch) as found:
        sweep(monkeypatch, "fewshot.shots=1,9999", f"output_dir={tmp_path}")
    shown = found[0]
    assert "the table of jobs is gone (division by zero)" in shown
    assert "2 jobs: 1 done, 1 failed" in shown


def test_a_job_logs_into_the_notes_only_beside_the_table(tmp_path, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", before := list(root.handlers))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv(sweep_live.TABLE, "1")
    monkeypatch.setenv(NOTES, str(tmp_path / "notes"))
    sweep_live.hush()
    assert root.handlers == before, "a job whose output is a file goes on as ever"
    sys.stdout.isatty = lambda: True
    sweep_live.hush()
    logging.getLogger("clipkal").warning("a %s", "word")
    assert [(one["status"], one["line"]) for one in Reader(tmp_path / "notes")()] == [("said", "a word")]
    logging.captureWarnings(False)
