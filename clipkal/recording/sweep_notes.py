"""The notes of a sweep: a file with a line of JSON for all that is to be done, each job that begins or ends, and what it says.

Jobs append to it in whichever process they run; the launcher reads it, for the table while they run
(`clipkal/recording/sweep_live.py`) and for the summary at the end (`clipkal/recording/sweep_summary.py`).
"""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig

NOTES = "CLIPKAL_SWEEP_NOTES"
"""In the environment of the jobs: the file of notes."""
ENDS = ("done", "failed", "left out")


def note(status: str, job: str, **more: Any) -> None:
    """Appends a line; outside of a sweep nothing happens.

    Args:
        status: "planned" (all jobs), "began", one of `ENDS`, or "said".
        job: its overrides, as they are typed.
        more: `path`, `out` (output_dir) of one that is done; `reason`; `line`; of "planned" `count` and `keys`.
    """
    if NOTES in os.environ:
        about = {"status": status, "job": job, "at": time.time(), "process": os.getpid()} | more
        with Path(os.environ[NOTES]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(about) + "\n")  # one write, so that lines of several workers stay apart


def began() -> None:
    """Notes that the job of this process has something to do: one that was finished before ends without it."""
    if NOTES in os.environ:
        note("began", " ".join(HydraConfig.get().overrides.task))


def planned(config: DictConfig) -> tuple[int | None, list[str]]:
    """Of a multirun the number of jobs, None where its sweeper does not say, and the keys in which they differ."""
    sweeper, count = config.hydra.sweeper, None
    words = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    with suppress(HydraException):  # Hydra itself will say what is wrong
        overrides = OverridesParser.create().parse_overrides([*words, *config.hydra.overrides.task])
        keys = [one.get_key_element() for one in overrides if _varies(one)]
        if sweeper._target_.endswith(".BasicSweeper"):
            count = len(BasicSweeper.split_arguments(overrides, None)[0])
        return count or sweeper.get("n_trials"), keys
    return None, []


def _varies(override: Override) -> bool:
    """Whether it has more than one value: settings of an option that is swept come as a sweep of one."""
    values = override.value()
    return override.is_sweep_override() and not (isinstance(values, ChoiceSweep) and len(values.list) == 1)


class Reader:
    """Reads the notes that were added since the last call, as far as their lines are whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        whole = b""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        self._at += len(whole) + bool(whole)
        yield from map(json.loads, whole.splitlines())


@dataclass
class Jobs:
    """Where a sweep stands, after the notes that it was given.

    Attributes:
        total: of all jobs, None where nobody knows.
        keys: in which they differ.
        counts: how many ended, by how.
        before: those of the done that were finished before.
        running: job -> when it began, in seconds since 1970.
        failures: job and reason, the last at the end.
    """

    total: int | None = None
    keys: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    before: int = 0
    running: dict[str, float] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    _at_once: int = 1
    _ends: dict[int, float] = field(default_factory=dict)  # of the last job of every process
    _first: list[float] = field(default_factory=list)  # seconds of jobs that had torch to import
    _seconds: list[float] = field(default_factory=list)  # of the others

    def take(self, one: dict[str, Any]) -> None:
        """One note more."""
        if one["status"] == "planned":
            self.total, self.keys = one["count"], one["keys"]
        elif one["status"] == "began":
            self.running[one["job"]] = one["at"]
            self._at_once = max(self._at_once, len(self.running))
        elif one["status"] in ENDS:
            self._end(one)

    def _end(self, one: dict[str, Any]) -> None:
        since = self.running.pop(one["job"], None)
        self.counts[one["status"]] += 1
        if one["status"] == "failed":
            self.failures.append((one["job"], one["reason"]))
        elif one["status"] == "done" and since is None:
            self.before += 1
        elif one["status"] == "done":
            last = self._ends.get(one["process"])
            (self._first if last is None else self._seconds).append(one["at"] - (last or since))
        if since is not None or one["process"] in self._ends:
            self._ends[one["process"]] = one["at"]

    @property
    def ended(self) -> int:
        """How many jobs are through, however."""
        return self.counts.total()

    @property
    def waiting(self) -> int:
        """How many have not begun, as far as it is known."""
        known = max(0, (self.total or 0) - self.ended - len(self.running))
        return known + self.counts["left out"]

    def seconds_left(self, now: float) -> float | None:
        """From the mean of the jobs that were done, those apart that were finished before; None without any, or without a total.

        The first job of a process, which imports torch and fills the caches, counts only while there is no other.
        """
        known = self._seconds or self._first
        if not known or self.total is None:
            return None
        mean = statistics.fmean(known)
        spent = sum(min(now - since, mean) for since in self.running.values())
        work = mean * (self.total - self.ended) - spent
        return max(0.0, work / self._at_once)

    def said(self, running: str = "running") -> str:
        """The counts in words; `running`: what those that began and did not end are called."""
        done = f"{self.counts['done']} done" + (f" ({self.before} before)" if self.before else "")
        rest = {"failed": self.counts["failed"], running: len(self.running), "not begun": self.waiting}
        return ", ".join([done, *(f"{count} {what}" for what, count in rest.items() if count)])

    def short(self, job: str) -> str:
        """The name of a job by what tells it from the others."""
        words = [word for word in job.split(" ") if word.lstrip("+~").partition("=")[0] in self.keys]
        return " ".join(words) or job
