"""What a run directory says of its run, checked against the digests in finished.json; no torch is imported."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clipkal import __version__, files
from clipkal.errors import CheckpointError
from clipkal.tracking.directory import ID_COMMENT, SCHEMA_VERSION
from clipkal.tracking.kept import keeps
from clipkal.tracking.marker import MARKER, damaged_files, read_marker
from clipkal.tracking.reported import reported

CLASSES, ADAPTER, POSTERIOR = "classes.safetensors", "adapter.safetensors", "posterior.safetensors"
PREDICTIVE, PREDICTIONS = "predictive.safetensors", "predictions.parquet"
READ = ("config.yaml", "results.json", CLASSES, ADAPTER, POSTERIOR, PREDICTIVE)
"""The files that a loaded run is made of; the others of its directory need not be there, as in a W&B artifact."""
EXAMPLE = "outputs/rendered/mini/kalman/16shot-seed1"
MOST_FOLDERS = 1000
OLDER = {name.lower(): f"clipkal.uncertainty.{name}" for name in ("Plugin", "Sampled", "Probit")}
ANEW = "delete the folder and type its command again"
AGAIN = "run clipkal with its settings again, which moves it aside"


@dataclass(frozen=True)
class Record:
    """A finished run as its files tell it.

    Attributes:
        path: the run directory.
        marker: finished.json.
        cfg: config.yaml, resolved.
        results: results.json.
    """

    path: Path
    marker: dict[str, Any]
    cfg: DictConfig
    results: dict[str, Any]

    @property
    def run_id(self) -> str:
        """Sixteen hex digits."""
        return str(self.marker["run_id"])

    @property
    def class_names(self) -> list[str]:
        """C names, in the order of the labels."""
        return [str(name) for name in self.results["run"]["classes"]]

    @property
    def predictives(self) -> list[str]:
        """The ways in which the run read out its probabilities, those of its test set."""
        return list(self.results["sets"]["test"]["predictive"])

    @property
    def reported(self) -> str:
        """The one of these that stands for the run."""
        return reported(self.predictives)

    def has(self, name: str) -> bool:
        """Whether the run wrote this file."""
        return name in self.marker["files"]

    def whole(self, name: str) -> Path:
        """The path of one of its files; CheckpointError where that is missing or not what the run wrote."""
        keep = str(self.cfg.get("keep", "all"))
        if not self.has(name) and not keeps(keep, name):
            raise CheckpointError(
                f"{self.path}: the run was made with keep={keep}, which leaves out {name}; delete the folder and type its "
                "command again with keep=all"
            )
        if not self.has(name):
            raise CheckpointError(f"{self.path}: the run wrote no {name}{_by(self.marker)}; {ANEW}")
        _check_whole(self.path, self.marker, [name])
        return self.path / name


def read_record(path: str | Path) -> Record:
    """Reads a run directory, or the folder of its W&B artifact.

    Raises:
        CheckpointError: there is no run, it has not finished, one of its files is missing or not what it wrote, or it is
            of a version that this one cannot read.
    """
    path = files.expanded(path)
    if not path.is_dir():
        what = "is a file, not a run directory" if path.exists() else "no such folder"
        raise CheckpointError(f"{path}: {what}; give a run directory, such as {EXAMPLE}")
    marker = read_marker(path)
    if marker is None:
        raise CheckpointError(_why_not(path))
    if marker.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {marker.get('schema_version')}{_by(marker)}, this clipkal reads "
            f"{SCHEMA_VERSION}; {_install(marker)}"
        )
    _check_whole(path, marker, [name for name in READ if name in marker["files"]])
    cfg, results = _config(path), _results(path)
    if not cfg.get("adapter", {}).get("_target_"):
        raise CheckpointError(
            f"{path}: its config.yaml is of another version of clipkal{_by(marker)}; {_install(marker)}"
        )
    return Record(path, marker, cfg, results)


def _check_whole(path: Path, marker: dict[str, Any], names: list[str]) -> None:
    listed = {"files": {name: marker["files"][name] for name in names}, "sizes": marker["sizes"]}
    if damaged := damaged_files(path, listed, None):
        absent = [name for name in damaged if not (path / name).exists()]
        what = "is missing" if damaged[0] in absent else "is not what the run wrote (its digest is another)"
        more = f", and so is {', '.join(damaged[1:])}" if len(damaged) > 1 else ""
        raise CheckpointError(f"{path / damaged[0]} {what}{more}; copy the run again, or {AGAIN}")


def _config(path: Path) -> DictConfig:
    try:
        cfg = OmegaConf.create((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise CheckpointError(f"{path / 'config.yaml'} cannot be read; {AGAIN}") from error
    if not isinstance(cfg, DictConfig):
        raise CheckpointError(f"{path / 'config.yaml'} is no configuration; {AGAIN}")
    if (how := cfg.get("predictive", {})) and not how.get("_target_") and how.get("name") in OLDER:
        how._target_ = OLDER[how.name]  # of a run before predictives were classes
    return cfg


def _results(path: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads((path / "results.json").read_text(encoding="utf-8"))
        results["sets"]["test"]["predictive"], results["run"]["classes"]  # what is read here
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / 'results.json'} is no results.json of clipkal; {AGAIN}") from error
    return results


def _why_not(path: Path) -> str:
    """Why a folder without a readable finished.json is no finished run."""
    if (path / MARKER).exists():
        return f"{path / MARKER} is damaged; copy the run again, or {AGAIN}"
    try:
        first = (path / "config.yaml").read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        first = ""
    if first.startswith(ID_COMMENT):
        return f"{path}: the run has not finished; its command, typed again, goes on from where it stopped"
    found = _inside(path)
    way_out = f"it holds runs: give one of them, such as {found}" if found else f"give one, such as {EXAMPLE}"
    return f"{path} is no run directory (it has no {MARKER}); {way_out}"


def _inside(folder: Path) -> Path | None:
    """Some run below a folder, looked for in its first `MOST_FOLDERS` folders."""
    for count, (name, inside, names) in enumerate(os.walk(folder)):
        inside.sort()
        if MARKER in names:
            return Path(name)
        if count > MOST_FOLDERS:
            return None
    return None


def _by(marker: dict[str, Any]) -> str:
    version = (marker.get("versions") or {}).get("clipkal")
    return f" (written by clipkal {version})" if isinstance(version, str) else ""


def _install(marker: dict[str, Any]) -> str:
    """The way out for a run of another version."""
    version = (marker.get("versions") or {}).get("clipkal")
    other = (
        f"read it with clipkal {version}, or " if isinstance(version, str) and version != __version__ else ""
    )
    return f"{other}run clipkal with its settings again"
