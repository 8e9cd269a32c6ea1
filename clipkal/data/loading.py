"""From a dataset config to a `Dataset`: picks the loader by `source` and adds what every source has in common."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipkal.data.names import shortened
from clipkal.data.sets import Dataset
from clipkal.data.spec import DataSpec, read_spec, require_path
from clipkal.errors import ConfigError

log = logging.getLogger(__name__)
LABELLED_BY_NUMBER = ("torchvision", "huggingface")  # sources whose labels are places in a list of names
_UNREADABLE = re.compile(r"\d+([.]\d+)?|n\d{8}")  # 7, 00012, 3.0, and n01440764 of WordNet


def load_dataset(cfg: Any, root: str | Path) -> Dataset:
    """Loads what `cfg` describes.

    Args:
        cfg: attribute-style (an OmegaConf node or a namespace), with the fields of
            `clipkal.config.schema.DatasetConfig`, of which all but `name` and `source` may be missing.
        root: the folder that relative paths start from.

    Raises:
        DataError: the source, a domain or a corruption is unknown (the nearest is named), or the data are not
            as described.
        ConfigError: a setting contradicts itself, or the source has only numbers for its classes.
    """
    spec = read_spec(cfg, root)
    require_path(spec, root)
    if spec.id_domain in spec.order and spec.id_domain not in spec.elsewhere:
        log.info("dataset.ood: %r is learnt from, so it is no OOD set here", spec.id_domain)
    dataset: Dataset = importlib.import_module(f"clipkal.data.{spec.source}").load(spec)
    if spec.class_names is None and dataset.text_features is None:
        _ask_for_names(spec, dataset.class_names)
    dataset = replace(dataset, spaces={name: shift.classes for name, shift in spec.shifts.items()})
    return _with_corruptions(dataset, spec) if spec.corruptions else dataset


def _ask_for_names(spec: DataSpec, names: Sequence[str]) -> None:
    """Reports classes that are called by numbers, which tell a text tower nothing.

    An error where labels count a list of names that is not there, and a warning where somebody chose them, since the
    digits are rightly called so.
    """
    if not all(_UNREADABLE.fullmatch(name) for name in names):
        return
    place = f"torchvision's {spec.torchvision}" if spec.source == "torchvision" else spec.place
    what = (
        f"{place}: its {len(names)} classes are called {shortened(names, 3)}, which means nothing to a text "
        "tower; name them in this order: 'dataset.class_names=[…,…]', or dataset.class_names=FILE.json"
    )
    if spec.source in LABELLED_BY_NUMBER:
        raise ConfigError(what)
    log.warning("%s", what)


def _with_corruptions(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Adds the corrupted copies of the ID test set, and sorts the OOD sets as the config lists them."""
    from clipkal.data.corruptions import corrupted

    ood = dict(dataset.ood)
    for kind, severity in spec.corruptions:
        one = corrupted(dataset.test, kind, severity)  # type: ignore[arg-type]  # features refuse corruptions
        ood[one.name] = one
    return replace(dataset, ood={name: ood[name] for name in [*spec.order, *ood] if name in ood})
