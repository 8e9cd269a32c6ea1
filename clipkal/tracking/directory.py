"""The run directory: the one place where a run's results are true. Whatever else fails, this must not."""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clipkal import files
from clipkal.errors import ClipkalError
from clipkal.tracking import identity
from clipkal.tracking.metrics_file import MetricsFile
from clipkal.tracking.writing import plain, writing

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MARKER = "finished.json"
ID_COMMENT = "# clipkal run "
NOT_RESULTS = ("wandb", "checkpoint", ".", MARKER)  # how names start that finished.json does not list


@dataclass(frozen=True)
class State:
    """What a run directory holds: nothing yet, a crashed (or running) run, or a finished one."""

    status: Literal["new", "unfinished", "finished"]
    run_id: str | None = None  # of the run found there; None where it does not say
    differs: list[str] = field(
        default_factory=list
    )  # `key: there → here`, against the configuration asked about


class RunDirectory:
    """Writes one run's files, each whole or absent, with `finished.json` last.

        with RunDirectory(path) as directory:
            if directory.begin(run_id, config_yaml).status == "finished":
                return                                  # the same run is done
            directory.trim(first_step)                  # 0, or the step of the checkpoint
            directory.log(step, "val", "id", "accuracy", 0.9)
            …
            directory.finish(summary)

    A failed write raises ClipkalError, one line with the path and the way out.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run_id: str | None = None
        self._lock: FileLock | None = None
        self._metrics = MetricsFile(self.path / "metrics.csv")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the directory, so that another process may take it."""
        self._metrics.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # -- what is there ---------------------------------------------------------------------------------------

    def state(self, config_yaml: str | None = None) -> State:
        """Whether a run is there, whose, and in which settings it differs from `config_yaml`."""
        if self.path.exists() and not self.path.is_dir():
            raise ClipkalError(f"{self.path} is a file where a run directory belongs; set output_dir=…")
        marker = self._marker()
        if marker is None and not (self.path.is_dir() and any(self.path.iterdir())):
            return State("new")
        there = self._config_text()
        known = marker.get("run_id") if marker else _id_in(there)
        differs = _differences(there, config_yaml) if there and config_yaml else []
        return State("finished" if marker else "unfinished", known, differs)

    def _marker(self) -> dict[str, Any] | None:
        """finished.json, or None where it is missing, damaged, or stands there without results."""
        try:
            marker = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(marker, dict) and "run_id" in marker
        listed = marker.get("files", {}) if whole else {}
        return marker if whole and ("results.json" not in listed or self.results_path.exists()) else None

    def _config_text(self) -> str:
        try:
            return (self.path / "config.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    @property
    def results_path(self) -> Path:
        """Where results.json is or will be."""
        return self.path / "results.json"

    # -- begin and finish ------------------------------------------------------------------------------------

    def begin(self, run_id: str, config_yaml: str) -> State:
        """Takes the directory for this run and returns what was there.

        "finished" means that the same run is done: skip it; nothing was touched. "unfinished" means that the
        same run crashed: its files and checkpoint are kept. A run with another id is moved to
        `<name>.old-<its id>`, and the answer is "new". Raises ClipkalError when another process is writing
        here.
        """
        state = self.state(config_yaml)
        if state.status == "finished" and state.run_id == run_id:
            return state
        self._take()
        try:
            state = self._make_room(self.state(config_yaml), run_id)
            if state.status != "finished":
                self._open(run_id, config_yaml)
        except BaseException:
            self.close()
            raise
        if state.status == "finished":  # another process ended the same run while this one waited
            self.close()
        return state

    def _take(self) -> None:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise ClipkalError(
                    f"{self.path}: another process is writing this run; wait for it, or set output_dir=…"
                ) from None
        self._lock = lock

    def _make_room(self, state: State, run_id: str) -> State:
        same = state.run_id == run_id or (state.run_id is None and state.status == "unfinished")
        if state.status == "new" or same:
            return state
        aside = self._free_name(f"{self.path.name}.old-{(state.run_id or 'unknown')[:8]}")
        with writing(self.path):
            self.path.rename(aside)
        what = "; ".join(state.differs[:3]) or "another configuration"
        log.warning("%s held another run (%s); moved to %s", self.path, what, aside.name)
        return State("new")

    def _free_name(self, name: str) -> Path:
        path, count = self.path.with_name(name), 1
        while path.exists():
            count += 1
            path = self.path.with_name(f"{name}-{count}")
        return path

    def _open(self, run_id: str, config_yaml: str) -> None:
        self.run_id = run_id
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / MARKER).unlink(missing_ok=True)
            for leftover in self.path.rglob(".*.part"):  # of writes that a crash cut short
                leftover.unlink(missing_ok=True)
        self.write_config(config_yaml)
        self._metrics.repair()

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Writes finished.json, with the sha256 of every result: from now on the run is done."""
        self._metrics.close()
        content = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "summary": plain(summary or {}),
            "files": self._digests(),
            "versions": identity.versions(),
        }
        with writing(self.path / MARKER):
            files.write_json(self.path / MARKER, content)

    def _digests(self) -> dict[str, str]:
        paths = sorted(p for p in self.path.rglob("*") if p.is_file())
        names = [p.relative_to(self.path) for p in paths]
        kept = [n for n in names if not n.parts[0].startswith(NOT_RESULTS) and not n.name.startswith(".")]
        return {n.as_posix(): files.sha256(self.path / n) for n in kept}

    def summary(self) -> dict[str, Any]:
        """What `finish` was given, for a run that is done; else nothing."""
        return dict((self._marker() or {}).get("summary", {}))

    def verify(self) -> list[str]:
        """Names of result files of a finished run that are missing or no longer what they were."""
        listed = (self._marker() or {}).get("files", {})
        return [name for name, digest in listed.items() if not _has_digest(self.path / name, digest)]

    # -- what a run leaves behind ----------------------------------------------------------------------------

    def trim(self, step: int) -> None:
        """Drops logged rows at or after `step`, which a resumed run is about to log again."""
        self._metrics.trim(step)

    def log(self, step: int, split: str, dataset: str, metric: str, value: float) -> None:
        """Appends one row to metrics.csv."""
        self._metrics.append([(step, split, dataset, metric, value)])

    def log_all(self, step: int, split: str, dataset: str, metrics: Mapping[str, float]) -> None:
        """Appends one row for each metric, in one write."""
        self._metrics.append([(step, split, dataset, name, value) for name, value in metrics.items()])

    def write_config(self, config_yaml: str) -> None:
        """config.yaml, with the run's id in its first line."""
        with writing(self.path / "config.yaml"):
            files.write_text(self.path / "config.yaml", f"{ID_COMMENT}{self.run_id}\n{config_yaml}")

    def write_results(self, results: Mapping[str, Any]) -> None:
        """results.json; schema version and run id are filled in."""
        content = {"schema_version": SCHEMA_VERSION, "run_id": self.run_id} | plain(results)
        self._write_json("results.json", content)

    def write_shots(self, record: Mapping[str, Any]) -> None:
        """shots.json: the images that were shown."""
        self._write_json("shots.json", plain(record))

    def _write_json(self, name: str, content: Any) -> None:
        with writing(self.path / name):
            files.write_json(self.path / name, content)

    def write_predictions(self, table: "pa.Table") -> Path:
        """predictions.parquet: one row per image and predictive."""
        from pyarrow import parquet

        path = self.path / "predictions.parquet"
        with writing(path), files.atomic_path(path) as temporary:
            parquet.write_table(table, temporary, compression="zstd")
        return path

    def save_tensors(self, name: str, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Any]) -> Path:
        """`<name>.safetensors`, with metadata as JSON."""
        from clipkal.tracking.tensors import write_tensors  # imports torch

        return write_tensors(self.path / f"{name}.safetensors", tensors, metadata)

    def save_figure(self, name: str, figure: "Figure") -> Path:
        """`figures/<name>.png`."""
        path = self.path / "figures" / f"{name}.png"
        with writing(path), files.atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        return path


def _id_in(config_text: str) -> str | None:
    first = config_text.partition("\n")[0]
    return first.removeprefix(ID_COMMENT).strip() if first.startswith(ID_COMMENT) else None


def _differences(there: str, here: str) -> list[str]:
    with suppress(OmegaConfBaseException, YAMLError, ValueError):
        old, new = (OmegaConf.to_container(OmegaConf.create(text)) for text in (there, here))
        if isinstance(old, dict) and isinstance(new, dict):
            return identity.differences(old, new)  # type: ignore[arg-type]
    return []


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and files.sha256(path) == digest
