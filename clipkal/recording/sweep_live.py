"""How a sweep stands, while it runs: on a terminal a table of its jobs, elsewhere a plain line now and then.

A thread of the launcher reads the notes of the jobs (`clipkal/recording/sweep_notes.py`). While the table is there, jobs in
processes that write on the same terminal draw no bars of their own, and what they log is noted: it is printed above the table.
"""

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from clipkal.recording.sweep_notes import Jobs, Reader, note

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

log = logging.getLogger("clipkal")

TABLE = "CLIPKAL_SWEEP_TABLE"
"""In the environment of the jobs: their terminal has a table."""
LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher",
    "hydra_plugins.hydra_ray_launcher", "hydra_plugins.hydra_submitit_launcher",
)  # fmt: skip
"""Whose log lists the jobs."""
EVERY, PLAIN = 0.5, 60.0
"""Seconds between two tables, and between two plain lines."""
PATIENCE = 5.0
"""Seconds that the end of a sweep waits for a terminal that takes nothing."""
MOST_RUNNING, MOST_FAILED = 8, 3


class Watch:
    """Follows the notes from `start` to `stop`."""

    def __init__(self, notes: Path) -> None:
        self.jobs = Jobs()
        self._read = Reader(notes)
        self._live: Live | None = None
        self._last = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sweep", daemon=True)

    def start(self, config: DictConfig) -> None:
        """Shows the table where there is a terminal and `data.progress` is on, without a line of Hydra for each job."""
        if config.data.progress and _terminal():
            from rich.console import Console
            from rich.live import Live

            os.environ[TABLE] = "1"
            for name in LAUNCHERS:
                logging.getLogger(name).setLevel(logging.WARNING)
            console = Console()
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
            console.show_cursor(True)  # so that it is still there after a kill
        self._thread.start()

    def stop(self) -> None:
        """Takes the table away; what was said last stays."""
        self._over.set()
        self._thread.join(PATIENCE)
        if self._live:
            self._look()
        self._end()

    def _end(self) -> None:
        os.environ.pop(TABLE, None)
        for name in LAUNCHERS:
            logging.getLogger(name).setLevel(logging.NOTSET)
        if self._live:
            self._live.stop()
            self._live = None

    def _follow(self) -> None:
        while not self._over.wait(EVERY if self._live else PLAIN):
            self._look()

    def _look(self) -> None:
        try:
            self._show()
        except Exception as error:  # the sweep goes on without a table
            self._end()
            log.warning("the table of jobs is gone (%s)", error)

    def _show(self) -> None:
        lines = []
        for one in self._read():
            self.jobs.take(one)
            lines += [one["line"]] if one["status"] == "said" else []
        if self._live:
            from rich.text import Text

            for line in lines:
                self._live.console.print(Text(line), soft_wrap=True)
            self._live.update(table(self.jobs, time.time()), refresh=True)
        elif self.jobs.ended > self._last:
            self._last = self.jobs.ended
            print(f"sweep: {plain(self.jobs, time.time())}", flush=True)


def _terminal() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def beside_table() -> bool:
    """Whether this process is a job's and writes on a terminal that has the table."""
    return TABLE in os.environ and sys.stdout.isatty()


def hush() -> None:
    """In a job, after Hydra has set its log up: where it would tear the table, it goes into the notes."""
    if beside_table():
        logging.captureWarnings(True)
        logging.getLogger().handlers = [_ToNotes()]


class _ToNotes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            note("said", "", line=self.format(record))


# -- what is shown --


def plain(jobs: Jobs, now: float) -> str:
    """One line: how many of how many, and for how long."""
    total = "" if jobs.total is None else f" of {jobs.total}"
    return f"{jobs.ended}{total} jobs: {jobs.said()}{_left(jobs, now)}"


def _left(jobs: Jobs, now: float) -> str:
    seconds = jobs.seconds_left(now)
    return "" if seconds is None else f"; about {span(seconds)} left"


def span(seconds: float) -> str:
    """A time in words: 4 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def table(jobs: Jobs, now: float) -> "Group":
    """A bar, the counts, the jobs that run (the longest first), and the last failures."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    total = "" if jobs.total is None else f" of {jobs.total}"
    bar = ProgressBar(total=jobs.total, completed=jobs.ended, width=30)
    head.add_row(bar, f"{jobs.ended}{total} jobs", Text(_left(jobs, now).lstrip("; "), style="bold"))
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    running = sorted(jobs.running.items(), key=lambda pair: pair[1])
    for job, since in running[:MOST_RUNNING]:
        rows.add_row(Text(span(now - since), style="cyan"), Text(jobs.short(job)))
    if len(running) > MOST_RUNNING:
        rows.add_row("", f"… and {len(running) - MOST_RUNNING} more")
    for job, reason in jobs.failures[-MOST_FAILED:]:
        rows.add_row(Text("failed", style="red"), Text(f"{jobs.short(job)}: {reason}"))
    return Group(head, Text(jobs.said()), rows)
