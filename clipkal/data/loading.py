"""From a dataset config to a `Dataset`: picks the loader by `source` and adds what every source has in
common.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from clipkal.data.sets import Dataset
from clipkal.data.spec import DataSpec, read_spec


def load_dataset(cfg: Any, root: str | Path) -> Dataset:
    """Loads what `cfg` describes.

    Args:
        cfg: attribute-style (an OmegaConf node or a namespace). Fields, all but the first two optional:
            name: what the dataset is called.
            source: rendered | digits | folder | archive | features | coop.
            path: its file or folder, absolute or relative to `root`; default `root/<name>`.
            id_domain: the domain to learn from; default the first.
            ood: a list of domains, paths of folders elsewhere (`name=path`, or the path alone), and
                `kind@severity` for corrupted copies of the ID test set. None takes every other domain of the
                source.
            templates: prompt templates with one `{}`; default "a photo of a {}."
            class_names: names to show: a mapping from folder (or file) names, a list in label order, or a
                file.
            val_fraction, test_fraction: shares of each class held out where a folder has no such split; 0.1
                and 0.4.
            split_sha256: source=coop only, the checksum that the split file must have.
        root: the folder that relative paths start from.

    Raises:
        DataError: the source, a domain or a corruption is unknown (the nearest is named), or the data are not
            as said.
        ConfigError: a setting contradicts itself.
    """
    spec = read_spec(cfg, root)
    dataset = importlib.import_module(f"clipkal.data.{spec.source}").load(spec)
    return _with_corruptions(dataset, spec) if spec.corruptions else dataset


def _with_corruptions(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Adds the corrupted copies of the ID test set, and sorts the OOD sets as the config lists them."""
    from dataclasses import replace

    from clipkal.data.corruptions import corrupted

    ood = dict(dataset.ood)
    for kind, severity in spec.corruptions:
        one = corrupted(dataset.test, kind, severity)  # type: ignore[arg-type]  # features refuse corruptions
        ood[one.name] = one
    return replace(dataset, ood={name: ood[name] for name in [*spec.order, *ood] if name in ood})
