"""From a dataset config to a `Dataset`: picks the loader by `source` and adds what every source has in
common.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipkal.data.sets import Dataset
from clipkal.data.spec import DataSpec, read_spec, require_path


def load_dataset(cfg: Any, root: str | Path) -> Dataset:
    """Loads what `cfg` describes.

    Args:
        cfg: attribute-style (an OmegaConf node or a namespace), with the fields of
            `clipkal.config.schema.DatasetConfig`, of which all but `name` and `source` may be missing.
        root: the folder that relative paths start from.

    Raises:
        DataError: the source, a domain or a corruption is unknown (the nearest is named), or the data are not
            as said.
        ConfigError: a setting contradicts itself.
    """
    spec = read_spec(cfg, root)
    require_path(spec)
    dataset: Dataset = importlib.import_module(f"clipkal.data.{spec.source}").load(spec)
    dataset = replace(dataset, spaces={name: shift.classes for name, shift in spec.shifts.items()})
    return _with_corruptions(dataset, spec) if spec.corruptions else dataset


def _with_corruptions(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Adds the corrupted copies of the ID test set, and sorts the OOD sets as the config lists them."""
    from clipkal.data.corruptions import corrupted

    ood = dict(dataset.ood)
    for kind, severity in spec.corruptions:
        one = corrupted(dataset.test, kind, severity)  # type: ignore[arg-type]  # features refuse corruptions
        ood[one.name] = one
    return replace(dataset, ood={name: ood[name] for name in [*spec.order, *ood] if name in ood})
