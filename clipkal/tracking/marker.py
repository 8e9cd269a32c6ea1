"""finished.json: what says that a run is done, whole, and made from which inputs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkal import files
from clipkal.tracking.inputs import is_record

MARKER = "finished.json"
ID = re.compile("[0-9a-f]{8,64}")  # of a run; it becomes a part of file names
NOT_RESULTS = ("wandb", "checkpoint", ".", MARKER)  # how names start that finished.json does not list


def read_marker(folder: Path) -> dict[str, Any] | None:
    """finished.json of a run directory, or None where it is missing or damaged."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return {"files": {}, "sizes": {}, "inputs": {}, **marker} if _is_marker(marker) else None


def results_in(folder: Path) -> list[str]:
    """The files of a run directory that finished.json lists, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    kept = [n for n in names if not n.parts[0].startswith(NOT_RESULTS) and not n.name.startswith(".")]
    return [name.as_posix() for name in kept]


def damaged_files(folder: Path, marker: Mapping[str, Any], most: int | None) -> list[str]:
    """Names of listed files that are missing or no longer what they were; see `RunDirectory.verify`."""
    sizes = marker.get("sizes", {})
    return [
        name
        for name, digest in marker.get("files", {}).items()
        if not _is_whole(folder / name, digest, sizes.get(name), most)
    ]


def _is_marker(value: Any) -> bool:
    """Whether JSON is what `finish` writes; the keys that older runs lack may be missing."""
    known = value.get("run_id") if isinstance(value, dict) else None
    if not isinstance(known, str) or not ID.fullmatch(known):
        return False
    listed, sizes, summary = (value.get(key, {}) for key in ("files", "sizes", "summary"))
    return (
        isinstance(listed, dict)
        and isinstance(sizes, dict)
        and all(isinstance(digest, str) and "\0" not in name for name, digest in listed.items())
        and all(isinstance(size, int) for size in sizes.values())
        and isinstance(summary, dict)
        and all(type(number) in (int, float, type(None)) for number in summary.values())
        and is_record(value.get("inputs", {}))
    )


def _is_whole(path: Path, digest: str, size: int | None, most: int | None) -> bool:
    try:
        there = path.stat().st_size
        if not path.is_file() or (size is not None and there != size):
            return False
        return (most is not None and there > most) or files.sha256(path) == digest
    except (OSError, ValueError):  # ValueError: a name that can be none of a file
        return False
