"""The run directory: the one place where a run's results are true. Whatever else fails, this must not."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from clipkal import files
from clipkal.errors import ClipkalError
from clipkal.tracking import identity
from clipkal.tracking.inputs import Record, inputs_of
from clipkal.tracking.kept import lacking
from clipkal.tracking.marker import ID, MARKER, damaged_files, read_marker, results_in
from clipkal.tracking.metrics_file import MetricsFile, Row
from clipkal.tracking.writing import plain, printable, render, writing

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
ID_COMMENT = "# clipkal run "
SMALL = 1 << 20  # bytes of a result whose digest is checked before a finished run is skipped


@dataclass(frozen=True)
class State:
    """What a run directory holds: nothing yet, a crashed (or running) run, or a finished one."""

    status: Literal["new", "unfinished", "finished"]
    run_id: str | None = None  # of the run found there; None where it does not say
    # `key: there → here`, against the configuration asked about
    differs: list[str] = field(default_factory=list)
    stale: str = ""  # why a finished run must be done again: damaged, or made from other inputs


class RunDirectory:
    """Writes one run's files, each whole or absent, with `finished.json` last.

        with RunDirectory(path) as directory:
            if directory.begin(run_id, config_yaml).status == "finished":
                return                                  # the same run is done
            directory.trim(first_step)                  # 0, or the step of the checkpoint
            directory.log(step, "val", "id", "accuracy", 0.9)
            …
            directory.finish(summary)

    A failed write raises ClipkalError, one line with the path and what to do.
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
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise ClipkalError(f"{self.path} is a file where a run directory belongs; set output_dir=…")
            empty = not (self.path.is_dir() and any(self.path.iterdir()))
        marker = read_marker(self.path)
        if marker is None and empty:
            return State("new")
        there = self._config_text()
        known = marker["run_id"] if marker else _id_in(there)
        differs = _differences(there, config_yaml) if there and config_yaml else []
        return State("finished" if marker else "unfinished", known, differs)

    def _config_text(self) -> str:
        try:
            return (self.path / "config.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def _asked(self, run_id: str, config_yaml: str) -> State:
        """The state, with what is stale about it where it is this very run."""
        state = self.state()
        if state.run_id != run_id:
            return self.state(config_yaml)
        if state.status != "finished":
            return state
        damaged, changed = self.verify(SMALL), self._changed_inputs(config_yaml)
        schema = (read_marker(self.path) or {}).get("schema_version")
        lines = [f"has schema version {schema}, not {SCHEMA_VERSION}"] * (schema != SCHEMA_VERSION)
        lines += [f"has damaged files ({_few(damaged)})"] * bool(damaged)
        lines += [f"was made from other data or weights ({_few(changed)})"] * bool(changed)
        return replace(state, stale=" and ".join(lines))

    def _changed_inputs(self, config_yaml: str) -> list[str]:
        record = (read_marker(self.path) or {}).get("inputs", {})
        inputs = inputs_of(OmegaConf.create(config_yaml))
        if inputs.verify and (unknown := inputs.unknown(record)):
            log.warning("%s was made without data.verify, so only %s", self.path, _only_stamps(unknown))
        return inputs.changes(record)

    @property
    def results_path(self) -> Path:
        """Where results.json is or will be."""
        return self.path / "results.json"

    # -- begin and finish ------------------------------------------------------------------------------------

    def begin(self, run_id: str, config_yaml: str) -> State:
        """Takes the directory for this run and returns what was there.

        "finished" means that the same run is done: skip it; nothing was touched. "unfinished" means that the
        same run crashed: its files and checkpoint are kept. A run with another id, one with damaged files, and
        one whose data or weights have changed since is moved to `<name>.old-<its id>`, with a line that says
        why, and the answer is "new". Raises ClipkalError when another process is writing here.
        """
        state = self._asked(run_id, config_yaml)
        if state.status == "finished" and state.run_id == run_id and not state.stale:
            return state
        self._take()
        try:
            state = self._make_room(self._asked(run_id, config_yaml), run_id)
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
        if state.status == "new" or (same and not state.stale):
            return state
        aside = self._free_name(f"{self.path.name}.old-{(state.run_id or 'unknown')[:8]}")
        with writing(self.path):
            self.path.rename(aside)
        what = "; ".join(state.differs[:3]) or "another configuration"
        why = state.stale or f"held another run ({what})"
        log.warning("%s %s; moved to %s, and done again", self.path, printable(why), aside.name)
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
            if (self.path / MARKER).exists():  # and yet the run does not count as finished
                log.warning("%s is damaged; the run is done again", self.path / MARKER)
                (self.path / MARKER).unlink()
            for leftover in self.path.rglob(".*.part"):  # of writes that a crash cut short
                leftover.unlink(missing_ok=True)
        self.write_config(config_yaml)
        self._metrics.repair()

    def finish(self, summary: Mapping[str, Any] | None = None, inputs: Record | None = None) -> None:
        """Writes finished.json, with size and sha256 of every result: from now on the run is done.

        Args:
            summary: the few final numbers.
            inputs: what the run was made from, `Inputs.record`.
        """
        self._metrics.close()
        names = results_in(self.path)
        content = {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "summary": plain(summary or {}),
            "files": {name: files.sha256(self.path / name) for name in names},
            "sizes": {name: (self.path / name).stat().st_size for name in names},
            "inputs": inputs or {},
            "versions": identity.versions(),
        }
        with writing(self.path / MARKER):
            files.write_json(self.path / MARKER, content)

    def summary(self) -> dict[str, Any]:
        """What `finish` was given, for a run that is done; else nothing."""
        return dict((read_marker(self.path) or {}).get("summary", {}))

    def lacks(self, keep: str) -> list[str]:
        """What a finished run did not leave behind although `keep` asks for it."""
        return lacking(keep, (read_marker(self.path) or {}).get("files", {}))

    def verify(self, most: int | None = None) -> list[str]:
        """Names of result files of a finished run that are missing or no longer what they were.

        Args:
            most: files of more bytes are only checked for their size; None digests every file.
        """
        return damaged_files(self.path, read_marker(self.path) or {}, most)

    # -- what a run leaves behind ----------------------------------------------------------------------------

    def trim(self, step: float) -> None:
        """Drops logged rows at or after `step`, which a resumed run is about to log again."""
        self._metrics.trim(step)

    def logged(self) -> list[Row]:
        """The rows of metrics.csv: step, split, dataset, metric, value."""
        return self._metrics.rows()

    def log(self, step: float, split: str, dataset: str, metric: str, value: float) -> None:
        """Appends one row to metrics.csv."""
        self._metrics.append([(step, split, dataset, metric, value)])

    def log_all(self, step: float, split: str, dataset: str, metrics: Mapping[str, float]) -> None:
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
        kinds = {one.name: str(one.type) for one in table.schema}
        paths = {name: f"{name}.list.element" if "list" in kind else name for name, kind in kinds.items()}
        inexact = [paths[name] for name, kind in kinds.items() if "float" in kind or "double" in kind]
        others = [name for name in kinds if paths[name] not in inexact]  # real numbers hardly repeat
        how: dict[str, Any] = {"use_dictionary": others, "use_byte_stream_split": inexact}
        with writing(path), files.atomic_path(path) as temporary:
            parquet.write_table(table, temporary, compression="zstd", **how)
        return path

    def save_tensors(self, name: str, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, Any]) -> Path:
        """`<name>.safetensors`, with metadata as JSON."""
        from clipkal.tracking.tensors import write_tensors  # imports torch

        return write_tensors(self.path / f"{name}.safetensors", tensors, metadata)

    def save_figure(self, name: str, figure: "Figure") -> Path:
        """`figures/<name>.png`."""
        path = self.path / "figures" / f"{name}.png"
        with writing(path), files.atomic_path(path) as temporary:
            render(figure, temporary, dpi=110)
        return path


def _id_in(config_text: str) -> str | None:
    first = config_text.partition("\n")[0]
    known = first.removeprefix(ID_COMMENT).strip()
    return known if first.startswith(ID_COMMENT) and ID.fullmatch(known) else None


def _differences(there: str, here: str) -> list[str]:
    try:
        old, new = (OmegaConf.to_container(OmegaConf.create(text)) for text in (there, here))
        return identity.differences(old, new)  # type: ignore[arg-type]
    except Exception:  # a damaged config.yaml has no settings to compare, however it is damaged
        return []


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _only_stamps(names: list[str]) -> str:
    return f"names, sizes and times of change could be compared of {_few(names)}"
