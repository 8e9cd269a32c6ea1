"""The end of a sweep: a table of its results, which jobs failed and why, and what to type next.

The figures are those that `finished.json` has of each run, so that a run that was finished before counts as well.
"""

import os
import re
import shlex
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from clipkal import files
from clipkal.recording import sweep
from clipkal.recording.sweep_live import Watch
from clipkal.recording.sweep_notes import NOTES, Jobs, Reader, note, planned
from clipkal.tracking.kept import LEFT_OUT
from clipkal.tracking.marker import read_marker
from clipkal.tracking.reported import reported

MOST = 40
"""Rows, and reasons of failures, that are shown; clipkal-report has all rows."""
FEW = 6
"""Jobs that are named for each reason."""
HEADER = ("run", "seeds", "ID acc", "NLL", "ECE", "OOD acc", "NLL", "ECE", "AUROC")
FIGURES = ("accuracy", "nll", "ece")
SEED = re.compile(r"\+?seed=")
PERCENT = {0, 2, 3, 5, 6}  # places among the figures


class Notes(Callback):
    """In the launcher: makes the file of notes, and follows it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = files.expanded(str(config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        handle, os.environ[NOTES] = tempfile.mkstemp(prefix=".sweep-", dir=folder.absolute())
        os.close(handle)
        count, keys = planned(config)
        note("planned", "", count=count, keys=keys)
        sweep.end_on_term()
        global _watch
        _watch = Watch(Path(os.environ[NOTES]))
        _watch.start(config)


_watch: Watch | None = None


def finish() -> None:
    """In the launcher, however the sweep ended: prints the summary; nothing where there was no sweep."""
    global _watch
    if (name := os.environ.get(NOTES)) is None:
        return
    if _watch:
        _watch.stop()
        _watch = None
    del os.environ[NOTES]
    noted = list(Reader(Path(name))())
    Path(name).unlink(missing_ok=True)
    for line in summary(noted):
        print(line)


def summary(noted: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of it, given what the jobs noted; none where no job came to anything."""
    jobs = Jobs()
    for one in noted:
        jobs.take(one)
    done = [one for one in noted if one["status"] == "done"]
    if not (jobs.ended or jobs.running):
        return
    if done:
        yield ""
        yield from _aligned([HEADER, *_rows(done)])
    count = jobs.total or jobs.ended + len(jobs.running)
    yield f"\n{count} job{'s' * (count != 1)}: {jobs.said('stopped')}"
    yield from _failures(jobs)
    if jobs.counts["done"] < count:
        yield "  the same command runs again what is not done"
    if done:
        yield _disk([Path(one["path"]) for one in done])
        folders = dict.fromkeys(one["out"] for one in done)
        yield f"next: clipkal-report {' '.join(map(shlex.quote, folders))}"


def _failures(jobs: Jobs) -> Iterator[str]:
    """Every reason once, and which jobs failed for it."""
    failed: dict[str, list[str]] = {}
    for job, reason in jobs.failures:
        failed.setdefault(reason, []).append(jobs.short(job))
    for reason, names in list(failed.items())[:MOST]:
        yield f"  {len(names)} failed: {reason}"
        yield from (f"    {name}" for name in names[:FEW])
        if (more := len(names) - FEW) > 0:
            yield f"    … and {more} more"
    if (more := len(failed) - MOST) > 0:
        yield f"  … and {more} more reasons"


def _disk(paths: list[Path]) -> str:
    """What a job takes on disk, what most of that is, and what would be left with the key that keeps less."""
    some = paths[:: -(-len(paths) // MOST)]
    sizes: dict[str, float] = defaultdict(float)
    for path in some:
        for file in path.rglob("*"):
            if file.is_symlink() or not file.is_file():
                continue  # W&B links every run to the one log of its service
            sizes[file.relative_to(path).parts[0]] += file.stat().st_size / len(some)
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    most = ", ".join(f"{name} {_size(sizes[name])}" for name in largest)
    all_of_them = sum(sizes.values())
    spared = sum(sizes[name] for name in LEFT_OUT["results"])
    less = f"; keep=results would leave {_size(all_of_them - spared)}" if spared else ""
    return f"disk: {_size(all_of_them)} a job ({most}){less}"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count > 1e6 else f"{count / 1e3:.0f} kB"


def _rows(done: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """One row for each choice of options, the mean over its seeds."""
    groups: dict[tuple[str, ...], dict[str, list[float | None]]] = {}
    names: dict[tuple[str, ...], str] = {}
    for one in done:
        path = Path(one["path"])
        place = path.relative_to(one["out"]) if path.is_relative_to(one["out"]) else path
        choice = (str(place.parent), *(word for word in one["job"].split(" ") if not SEED.match(word)))
        groups.setdefault(choice, {})[one["path"]] = figures((read_marker(path) or {}).get("summary", {}))
        names[choice] = _common(names.get(choice), re.sub(r"-seed-?\w+", "", place.as_posix()))
    for name, runs in list(zip(_short(list(names.values())), groups.values(), strict=True))[:MOST]:
        columns = zip(*runs.values(), strict=True)
        yield name, str(len(runs)), *(_cell(i, column) for i, column in enumerate(columns))
    if (more := len(groups) - MOST) > 0:
        yield f"… and {more} more rows", *[""] * (len(HEADER) - 1)


def _common(other: str | None, name: str) -> str:
    """A name for several seeds: without the digest at its end where theirs differ."""
    return name if other in (None, name) else name.rpartition("-")[0]


def _short(names: list[str]) -> list[str]:
    """Names of runs without the settings, --key-value, that all of them have."""
    parts = [name.split("--") for name in names]
    common = set(parts[0]).intersection(*parts) if len(parts) > 1 else set()
    return ["--".join([first, *(one for one in rest if one not in common)]) for first, *rest in parts]


def figures(flat: dict[str, Any]) -> list[float | None]:
    """Of a run's summary the figures of the table, None for what it has not.

    Accuracy, NLL and ECE on the ID test set, their means over the OOD sets, and the mean AUROC of telling these apart by the
    largest probability, all of the predictive that the run reports.
    """
    parts = [key.split("/") for key in flat]
    predictives = dict.fromkeys(part[1] for part in parts if part[0] == "test" and len(part) == 3)
    if not predictives:
        return [None] * (2 * len(FIGURES) + 1)
    chosen = reported(predictives)
    ood = dict.fromkeys(part[1] for part in parts if part[0] == "detection")
    return [
        *(flat.get(f"test/{chosen}/{figure}") for figure in FIGURES),
        *(_mean([flat.get(f"{name}/{chosen}/{figure}") for name in ood]) for figure in FIGURES),
        _mean([flat.get(f"detection/{name}/msp/auroc") for name in ood]),
    ]


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cell(place: int, values: Any) -> str:
    mean = _mean(values)
    return "–" if mean is None else f"{mean:.1%}" if place in PERCENT else f"{mean:.3f}"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
