"""Finding the finished runs under some folders."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkal.errors import DataError
from clipkal.report.results import RESULTS, read_results
from clipkal.tracking.directory import ID_COMMENT
from clipkal.tracking.marker import MARKER

ASIDE = ".old-"
"""In the name of a run that was moved aside for another one; it is no longer part of the results."""


@dataclass(frozen=True)
class Run:
    """One finished run, as its results.json tells it; `training` and `environment` are empty where it has none."""

    path: Path
    run_id: str
    run: dict[str, Any]
    sets: dict[str, Any]
    detection: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass
class Collection:
    """What was found.

    Attributes:
        runs: each id once.
        unfinished: the folders of unfinished runs.
        duplicates: the copies left out.
        damaged: one line for each run that is damaged or of another schema version.
    """

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    duplicates: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def collect(roots: Iterable[str | Path]) -> Collection:
    """Every finished run under `roots`, in the order of their paths.

    Raises:
        DataError: a root does not exist, or there is no finished run at all that can be read.
    """
    folders = [Path(root) for root in roots]
    found = Collection()
    seen: dict[str, Path] = {}
    for path in sorted({path.resolve(): path for root in folders for path in _run_folders(root)}.values()):
        if not ((path / MARKER).is_file() and (path / RESULTS).is_file()):
            found.unfinished.append(path)
            continue
        try:
            run = _read(path)
        except DataError as error:
            found.damaged.append(str(error))
            continue
        if run.run_id in seen:
            found.duplicates.append(path)
        else:
            seen[run.run_id] = path
            found.runs.append(run)
    if not found.runs:
        where = ", ".join(map(str, folders))
        left = [f"{len(found.unfinished)} unfinished"] * bool(found.unfinished) + found.damaged[:3]
        but = f" ({', '.join(left)})" if left else ""
        raise DataError(
            f"no finished run under {where}{but}; run clipkal first, or give the folder it wrote to"
        )
    return found


def _run_folders(root: Path) -> Iterator[Path]:
    """The run directories at or below `root`; hidden folders and runs moved aside are left out."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that holds clipkal runs, such as outputs")
    for name, folders, files in os.walk(root):
        path = Path(name)
        if RESULTS in files or MARKER in files or ("config.yaml" in files and _is_run(path / "config.yaml")):
            folders.clear()
            yield path
        folders[:] = sorted(f for f in folders if not f.startswith(".") and ASIDE not in f)


def _is_run(config: Path) -> bool:
    try:
        with config.open(encoding="utf-8") as file:
            return file.readline().startswith(ID_COMMENT)
    except (OSError, UnicodeDecodeError):
        return False


def _read(path: Path) -> Run:
    content = read_results(path)
    parts = (content.get(key) or {} for key in ("detection", "training", "environment"))
    return Run(path, content["run_id"], content["run"], content["sets"], *parts)
