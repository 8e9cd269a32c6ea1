"""What a dataset config asks for, read once and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkal.data.names import choose
from clipkal.errors import ConfigError, DataError

SOURCES = ("rendered", "digits", "folder", "archive", "features", "coop")
DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_VAL_FRACTION = 0.1
DEFAULT_TEST_FRACTION = 0.4
ClassNames = Mapping[str, str] | Sequence[str] | None


@dataclass(frozen=True)
class DataSpec:
    """A dataset config with its paths made absolute.

    Attributes:
        name, source: what it is called and which loader reads it (one of `SOURCES`).
        path: the file or folder; the data root joined with the name where the config gives none.
        id_domain: the domain to learn from, or None for the first.
        domains: OOD domains of the same source; None for every other one.
        elsewhere: OOD name -> folder outside the dataset (`name=path` in the config, or a path alone, named
            by its end).
        corruptions: (kind, severity) of corrupted copies of the ID test set (`kind@severity`).
        order: the names of the OOD sets in the order of the config, empty where it does not list them.
        templates: prompt templates with one `{}`.
        class_names: see `names.renamed`.
        val_fraction, test_fraction: shares of each class held out where a folder comes without that split.
        split_sha256: for source=coop, the checksum that the split file must have.
    """

    name: str
    source: str
    path: Path
    id_domain: str | None = None
    domains: list[str] | None = None
    elsewhere: dict[str, Path] = field(default_factory=dict)
    corruptions: list[tuple[str, int]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    class_names: ClassNames = None
    val_fraction: float = DEFAULT_VAL_FRACTION
    test_fraction: float = DEFAULT_TEST_FRACTION
    split_sha256: str | None = None


def read_spec(cfg: Any, root: str | Path) -> DataSpec:
    """Reads an attribute-style config, an OmegaConf node or a namespace; relative paths start at `root`.

    Raises:
        DataError: the source or a corruption is unknown.
        ConfigError: `name` or `source` is missing, or a fraction is not in 0..1.
    """
    name, source = _get(cfg, "name"), _get(cfg, "source")
    if not name or not source:
        raise ConfigError("dataset.name and dataset.source must be set")
    choose("dataset.source", str(source), SOURCES)
    root = Path(root).expanduser().absolute()
    domains, elsewhere, corruptions, order = _read_ood(_get(cfg, "ood"), root)
    return DataSpec(
        name=str(name),
        source=str(source),
        path=root / Path(_get(cfg, "path") or str(name)).expanduser(),
        id_domain=_get(cfg, "id_domain"),
        domains=domains,
        elsewhere=elsewhere,
        corruptions=corruptions,
        order=order,
        templates=tuple(_templates(_get(cfg, "templates"))),
        class_names=_class_names(_get(cfg, "class_names"), root),
        val_fraction=_fraction(cfg, "val_fraction", DEFAULT_VAL_FRACTION),
        test_fraction=_fraction(cfg, "test_fraction", DEFAULT_TEST_FRACTION),
        split_sha256=_get(cfg, "split_sha256"),
    )


def _get(cfg: Any, key: str) -> Any:
    return getattr(cfg, key, None)


Ood = tuple[list[str] | None, dict[str, Path], list[tuple[str, int]], list[str]]


def _read_ood(ood: Any, root: Path) -> Ood:
    """Domains, folders elsewhere, corruptions, and all their names in order."""
    from clipkal.data.corruptions import parse

    if ood is None:
        return None, {}, [], []
    if isinstance(ood, str):
        ood = [ood]
    domains, elsewhere, corruptions, order = [], {}, [], []
    for entry in map(str, ood):
        label, _, place = entry.partition("=")
        if not place and ("/" in entry or "\\" in entry):
            label, place = Path(entry).name, entry
        if place:
            elsewhere[label] = root / Path(place).expanduser()
        elif "@" in entry:
            corruptions.append(parse(entry))
        else:
            domains.append(entry)
        order.append(label)
    if len(set(order)) != len(order):
        raise ConfigError(f"dataset.ood lists a name twice: {', '.join(order)}")
    return domains, elsewhere, corruptions, order


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


def _class_names(names: Any, root: Path) -> ClassNames:
    """A mapping or list as it is; a string is a file: JSON, or lines of a key, a space and the name."""
    if names is None:
        return None
    if isinstance(names, Mapping):
        return {str(k): str(v) for k, v in names.items()}
    if not isinstance(names, str):
        return [str(n) for n in names]
    path = root / Path(names).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return _class_names(json.loads(text), root)
        return dict(line.strip().split(maxsplit=1) for line in text.splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: no class names can be read there ({error}); check dataset.class_names"
        ) from error
