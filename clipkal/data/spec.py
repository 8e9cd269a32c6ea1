"""What a dataset config asks for, read once and checked."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from clipkal.data.class_files import ClassNames, class_map, class_names
from clipkal.data.names import choose, shown
from clipkal.errors import ConfigError

SOURCES = (
    "rendered", "digits", "folder", "table", "archive", "features", "coop", "torchvision", "huggingface",
)  # fmt: skip
PLACED = {
    "folder": "your folder of images",
    "table": "your .csv",
    "archive": "your .npz of images",
    "features": "your .npz of features",
}
READ_BY = {
    "path": tuple(source for source in SOURCES if source not in ("rendered", "digits")),
    "id_domain": tuple(source for source in SOURCES if source not in ("coop", "torchvision")),
    "columns": ("table", "huggingface"),
    "torchvision": ("torchvision",),
    "repository": ("huggingface",),
    "configs": ("huggingface",),
    "split_sha256": ("coop",),
}
"""Settings -> the sources that they mean something to."""
SPACES = ("occurring", "all")
DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_VAL_FRACTION = 0.1
DEFAULT_TEST_FRACTION = 0.4


@dataclass(frozen=True)
class Shift:
    """An OOD set that lies outside the dataset.

    Attributes:
        path: a folder of class folders, or a file: .npz (archive or features), .csv, or `…_data.npy`.
        domain: the only domain of a file with several that counts; None for the one called like the set.
        class_map: class there -> class of ID (as their sources call them); None where names agree.
        border: pixels to cut off every side of its images.
        classes: what it is scored over: "occurring", the classes that occur in it, or "all".
        urls: address -> sha256 of the files that dataset.download=true may fetch, to the folder of `path`.
    """

    path: Path
    domain: str | None = None
    class_map: Mapping[str, str] | None = None
    border: int = 0
    classes: str = "occurring"
    urls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSpec:
    """A dataset config with its paths made absolute.

    Attributes:
        name, source: what it is called and which loader reads it (one of `SOURCES`).
        path: the file or folder; the data root joined with the name where the config gives none.
        placed: whether the config gives a path.
        id_domain: the domain to learn from, or None for the first.
        domains: OOD domains of the same source, without `id_domain`; None for every other one.
        shifts: OOD sets from elsewhere, those that `ood` names.
        corruptions: (kind, severity) of corrupted copies of the ID test set (`kind@severity`).
        order: the names of the OOD sets in the order of the config, empty where it does not list them.
        templates: prompt templates with one `{}`.
        class_names: see `names.renamed`.
        val_fraction, test_fraction: shares of each class held out where there is no such split.
        split_sha256: for source=coop, the checksum that the split file must have.
        columns: for tables, what the columns path, image, label, split and domain are called there.
        splits: set -> which rows: a word of the split column or a list of them, or for tables a condition on each
            column; for folders the name of the subfolder.
        torchvision: for source=torchvision, the class in torchvision.datasets.
        repository, configs: for source=huggingface, the name on the Hub and the configurations to join.
        download: whether missing files may be fetched.
    """

    name: str
    source: str
    path: Path
    placed: bool = True
    id_domain: str | None = None
    domains: list[str] | None = None
    shifts: dict[str, Shift] = field(default_factory=dict)
    corruptions: list[tuple[str, int]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    class_names: ClassNames = None
    val_fraction: float = DEFAULT_VAL_FRACTION
    test_fraction: float = DEFAULT_TEST_FRACTION
    split_sha256: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, Any] = field(default_factory=dict)
    torchvision: str | None = None
    repository: str | None = None
    configs: list[str] | None = None
    download: bool = False

    @property
    def place(self) -> str:
        """Where the data are, for messages."""
        return self.repository or str(self.path)

    @property
    def elsewhere(self) -> dict[str, Path]:
        """The places of the OOD sets from elsewhere, by name."""
        return {name: shift.path for name, shift in self.shifts.items()}


def read_spec(cfg: Any, root: str | Path) -> DataSpec:
    """Reads an attribute-style config, an OmegaConf node or a namespace; relative paths start at `root`.

    Raises:
        DataError: the source or a corruption is unknown.
        ConfigError: `name` or `source` is missing, a fraction is not in 0..1, a path is one that no disk can hold, or the
            source does not read a setting.
    """
    name, source = _get(cfg, "name"), _get(cfg, "source")
    if not name or not source:
        raise ConfigError("dataset.name and dataset.source must be set")
    choose("dataset.source", str(source), SOURCES)
    _refuse_unread(cfg, str(source))
    root = _place("data.root", root, Path()).absolute()
    path = _place("dataset.path", _get(cfg, "path") or str(name), root)
    tree = path if source == "folder" else None
    domains, shifts, corruptions, order = _read_ood(_get(cfg, "ood"), _get(cfg, "shifts"), root, tree)
    if (own := _get(cfg, "id_domain")) in (domains or ()):  # as in a sweep over dataset.id_domain
        domains = [name for name in domains or () if name != own]
    configs = _get(cfg, "configs")
    return DataSpec(
        name=str(name),
        source=str(source),
        path=path,
        placed=bool(_get(cfg, "path")),
        id_domain=_get(cfg, "id_domain"),
        domains=domains,
        shifts=shifts,
        corruptions=corruptions,
        order=order,
        templates=tuple(_templates(_get(cfg, "templates"))),
        class_names=class_names(_get(cfg, "class_names"), root),
        val_fraction=_fraction(cfg, "val_fraction", DEFAULT_VAL_FRACTION),
        test_fraction=_fraction(cfg, "test_fraction", DEFAULT_TEST_FRACTION),
        split_sha256=_get(cfg, "split_sha256"),
        columns=_plain(_get(cfg, "columns")),
        splits=_plain(_get(cfg, "splits")),
        torchvision=_get(cfg, "torchvision"),
        repository=_get(cfg, "repository"),
        configs=None if configs is None else [str(c) for c in configs],
        download=bool(_get(cfg, "download")),
    )


def _get(cfg: Any, key: str) -> Any:
    return getattr(cfg, key, None)


def _refuse_unread(cfg: Any, source: str) -> None:
    """Raises `ConfigError` for a setting that the source would pass over in silence."""
    for key, sources in READ_BY.items():
        if _get(cfg, key) and source not in sources:
            raise ConfigError(
                f"dataset.{key}={shown(str(_get(cfg, key)))}: dataset={_get(cfg, 'name')} (source {source}) does not read "
                f"it; it is for {', '.join(sources)}"
            )


def require_path(spec: DataSpec, root: str | Path) -> None:
    """Raises `ConfigError` where the data are somebody's own and `dataset.path` does not say where they are.

    Relative paths start at `root`; one that is there from where the command was typed, and not from `root`, is told.
    """
    start = _place("data.root", root, Path()).absolute()
    for place in [*([spec.path] if spec.placed else []), *spec.elsewhere.values()]:
        typed = place.relative_to(start) if place.is_relative_to(start) else place
        if not place.exists() and typed.exists():
            raise ConfigError(
                f"{place}: no such file or folder: relative paths of a dataset start at data.root={root}; for the one in the "
                f"current folder give {typed.absolute()}"
            )
    if not spec.placed and spec.source in PLACED and not spec.path.exists():
        raise ConfigError(
            f"dataset.path is not set, and {spec.path} is not there; check dataset.path, the place of "
            f"{PLACED[spec.source]}, such as dataset.path=/my/data"
        )


def _place(key: str, given: str | Path, root: Path) -> Path:
    """`given` below `root`, the home folder written out; raises `ConfigError` on what no file system can hold."""
    try:
        path = root / Path(given).expanduser()
        path.lstat()
    except (ValueError, RuntimeError) as error:  # a NUL, half a surrogate pair; no home folder
        raise ConfigError(f"{key}={shown(str(given))}: is no path ({error})") from error
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            reason = str(error.strerror).lower()
            raise ConfigError(f"{key}={shown(str(given))}: is no path ({reason})") from error
    return path


def _plain(mapping: Any) -> dict[str, Any]:
    """A mapping of OmegaConf's as a dictionary; None as an empty one."""
    if OmegaConf.is_config(mapping):
        mapping = OmegaConf.to_container(mapping, resolve=True)
    return {str(key): value for key, value in (mapping or {}).items()}


Ood = tuple[list[str] | None, dict[str, Shift], list[tuple[str, int]], list[str]]


def _read_ood(ood: Any, known: Any, root: Path, tree: Path | None) -> Ood:
    """Domains, sets from elsewhere, corruptions, and all their names in order.

    What is the name of a folder in `tree` is a domain, whatever characters it has.
    """
    from clipkal.data.corruptions import parse

    if ood is None:
        return None, {}, [], []
    if isinstance(ood, str):
        ood = [ood]
    described = _plain(known)
    domains, shifts, corruptions, order = [], {}, [], []
    for entry in map(str, ood):
        label, place = _named_place(entry)
        if tree is not None and "/" not in entry and entry not in described and _is_folder(tree / entry):
            domains.append(label := entry)
        elif place:
            shifts[label] = Shift(_place(f"dataset.ood: {label}", place, root))
        elif entry in described:
            shifts[entry] = _read_shift(entry, described[entry], root)
        elif "@" in entry:
            corruptions.append(parse(entry))
        else:
            domains.append(entry)
        order.append(label)
    if len(set(order)) != len(order):
        raise ConfigError(f"dataset.ood lists a name twice: {', '.join(order)}")
    return domains, shifts, corruptions, order


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no path at all
        return False


def _named_place(entry: str) -> tuple[str, str]:
    """("far", "a/b") of "far:a/b", ("b", "a/b") of "a/b", and (entry, "") of what is no path."""
    label, _, place = entry.partition(":")
    drive = len(label) == 1 and place.startswith("\\")
    if place and not drive and "/" not in label:
        return label, place
    return (Path(entry).name, entry) if "/" in entry or "\\" in entry else (entry, "")


def _read_shift(name: str, described: Mapping[str, Any], root: Path) -> Shift:
    """One entry of dataset.shifts, whose keys the schema has checked where the config is typed."""
    key = f"dataset.shifts.{name}"
    if not described.get("path"):
        raise ConfigError(f"{key}.path must be set: the folder or file of this OOD set")
    classes, border = described.get("classes") or "occurring", described.get("border") or 0
    choose(f"{key}.classes", str(classes), SPACES, ConfigError)
    if not isinstance(border, int) or border < 0:
        raise ConfigError(f"{key}.border={border}: must be a number of pixels, 0 or more")
    return Shift(
        path=_place(f"{key}.path", described["path"], root),
        domain=described.get("domain"),
        class_map=class_map(f"{key}.class_map", described.get("class_map"), root),
        border=border,
        classes=str(classes),
        urls=dict(described.get("urls") or {}),
    )


def _templates(templates: Any) -> list[str]:
    if templates is None:
        return list(DEFAULT_TEMPLATES)
    return [templates] if isinstance(templates, str) else [str(t) for t in templates]


def _fraction(cfg: Any, key: str, default: float) -> float:
    value = _get(cfg, key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"dataset.{key}={value}: must be a number from 0 to below 1")
    return float(value)
