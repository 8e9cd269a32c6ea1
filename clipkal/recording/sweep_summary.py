"""The end of a sweep: a table of its results, which jobs failed and why, and what to type next.

Every job notes how it ended on a line of a file in the sweep's folder, whose name its process has from the environment. The
figures are those that `finished.json` has of each run, so that a run that was finished before counts as well.
"""

import json
import os
import re
import shlex
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from clipkal import files
from clipkal.tracking.marker import read_marker
from clipkal.tracking.reported import reported

NOTES = "CLIPKAL_SWEEP_NOTES"  # in the environment of the jobs: the file of notes
MOST = 40
"""Rows and failures that are shown; clipkal-report has all."""
HEADER = ("run", "seeds", "ID acc", "NLL", "ECE", "OOD acc", "NLL", "ECE", "AUROC")
FIGURES = ("accuracy", "nll", "ece")
PERCENT = {0, 2, 3, 5, 6}  # places among the figures


class Notes(Callback):
    """In the launcher: makes the file of notes."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = files.expanded(str(config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        handle, os.environ[NOTES] = tempfile.mkstemp(prefix=".sweep-", dir=folder.absolute())
        os.close(handle)


def note(status: str, job: str, path: Path | None = None, output_dir: str = "", reason: str = "") -> None:
    """Says how a job ended: "done", "failed" or "left out"; outside of a sweep nothing happens."""
    if NOTES in os.environ:
        found = {
            "status": status,
            "job": job,
            "path": path and str(path),
            "out": output_dir,
            "reason": reason,
        }
        with Path(os.environ[NOTES]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")  # one write, so that lines of several workers stay apart


def finish() -> None:
    """In the launcher, however the sweep ended: prints the summary; nothing where there was no sweep."""
    if (name := os.environ.pop(NOTES, None)) is None:
        return
    noted = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
    Path(name).unlink()
    for line in summary(noted) if noted else ():
        print(line)


def summary(noted: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of it, given what the jobs noted."""
    done = [one for one in noted if one["status"] == "done"]
    failed = [one for one in noted if one["status"] == "failed"]
    left_out = len(noted) - len(done) - len(failed)
    if done:
        yield ""
        yield from _aligned([HEADER, *_rows(done)])
    counts = {"done": len(done), "failed": len(failed), "not begun": left_out}
    said = ", ".join(f"{n} {what}" for what, n in counts.items() if n or what == "done")
    yield f"\n{len(noted)} job{'s' * (len(noted) != 1)}: {said}"
    for one in failed[:MOST]:
        yield f"  failed: {one['job']}\n          {one['reason']}"
    yield from _more(len(failed), "failures")
    if failed or left_out:
        yield "  the same command runs again what is not done"
    if done:
        folders = dict.fromkeys(one["out"] for one in done)
        yield f"next: clipkal-report {' '.join(map(shlex.quote, folders))}"


def _rows(done: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """One row for each choice of options, the mean over its seeds."""
    groups: dict[str, dict[str, list[float | None]]] = {}
    for one in done:
        path = Path(one["path"])
        place = path.relative_to(one["out"]) if path.is_relative_to(one["out"]) else path
        group = groups.setdefault(re.sub(r"-seed-?\w+", "", place.as_posix()), {})
        group[one["path"]] = figures((read_marker(path) or {}).get("summary", {}))
    for name, runs in list(zip(_short(list(groups)), groups.values(), strict=True))[:MOST]:
        columns = zip(*runs.values(), strict=True)
        yield name, str(len(runs)), *(_cell(i, column) for i, column in enumerate(columns))
    if (more := len(groups) - MOST) > 0:
        yield f"… and {more} more rows", *[""] * (len(HEADER) - 1)


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


def _more(count: int, what: str) -> Iterator[str]:
    if count > MOST:
        yield f"  … and {count - MOST} more {what}"
