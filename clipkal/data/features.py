"""Precomputed features: an `.npz` that holds the images of every domain and split as rows.

Arrays: `image_features` [n, d], `text_features` [C, d], `logit_scale` (the factor on the cosine, not its
logarithm), `label`, `domain`, `split` [n] as places in `classes`, `domains`, `splits` (train, val, test);
`id` [n] optional. Features may be float16; they become float32 and are normalised again, since rounding takes
them off the sphere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipkal.data.matching import matched
from clipkal.data.names import fill_templates, renamed
from clipkal.data.partition import Columns, open_npz, partition, read_table, require, rows_of_shift, texts
from clipkal.data.sets import Dataset, FeatureSet
from clipkal.data.shifts import require as require_shift
from clipkal.data.spec import DataSpec, Shift
from clipkal.errors import DataError

WHAT = "an .npz with image_features, text_features, logit_scale, label, domain, split"

_FAR_OFF = 0.05  # stored rows whose length differs more than this from one were never normalised: refuse them


@dataclass(frozen=True)
class Stored:
    """One file: its columns, and a feature and an id for each row."""

    table: Columns
    features: Tensor  # float32 [n, d], unit rows
    ids: list[str]

    def at(self, name: str, positions: list[int], labels: Tensor | None = None) -> FeatureSet:
        """The rows at `positions`, under their own labels or others."""
        own = torch.from_numpy(self.table.label)[positions]
        ids = [self.ids[i] for i in positions]
        return FeatureSet(name, ids, own if labels is None else labels, self.features[positions])


def load(spec: DataSpec) -> Dataset:
    """Reads the file at `spec.path`.

    Raises:
        DataError: the file, an array, a domain or a split is missing, or a feature is zero, not finite or not
            normalised; or the config asks for corruptions or OOD images, which features cannot give.
    """
    if spec.corruptions:
        raise DataError(
            f"dataset.ood: {spec.path.name} holds features, not images, which cannot be corrupted"
        )
    arrays = open_npz(spec.path, WHAT)
    require(spec.path, arrays, ("text_features", "logit_scale"))
    stored = _read(spec.path, arrays)
    table, width = stored.table, stored.features.shape[1]
    text = _unit(arrays["text_features"], f"{spec.path}: text_features")
    if text.shape != (len(table.classes), width):
        raise DataError(
            f"{spec.path}: text_features are {list(text.shape)}, expected {[len(table.classes), width]}"
        )
    part = partition(table, spec)
    names = renamed(table.classes, spec.class_names)
    ood = {domain: stored.at(f"{domain}/test", chosen) for domain, chosen in part.ood.items()}
    shifted = {name: _shifted(name, shift, stored, spec.download) for name, shift in spec.shifts.items()}
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        stored.at(f"{part.id_domain}/train", part.train),
        stored.at(f"{part.id_domain}/val", part.val) if part.val else None,
        stored.at(f"{part.id_domain}/test", part.test),
        ood | shifted,
        text,
        _scale(spec, arrays["logit_scale"]),
    )


def _read(path: Path, arrays: dict[str, np.ndarray]) -> Stored:
    require(path, arrays, ("image_features",))
    features = _unit(arrays["image_features"], f"{path}: image_features")
    table = read_table(path, arrays, len(features))
    return Stored(table, features, _ids(table, arrays))


def _shifted(name: str, shift: Shift, own: Stored, download: bool) -> FeatureSet:
    """The test rows of a domain of another file, under the labels of ID."""
    require_shift(name, shift, download)
    other = _read(shift.path, open_npz(shift.path, WHAT))
    if other.features.shape[1] != own.features.shape[1]:
        raise DataError(
            f"{shift.path}: its features are {other.features.shape[1]} wide, those of ID {own.features.shape[1]}; "
            "both must come from one backbone"
        )
    keys, classes = own.table.classes, other.table.classes
    rows = rows_of_shift(other.table, name, shift)
    found = [classes[other.table.label[i]] for i in rows]
    key_of = matched(name, found, keys, shift.path, shift.class_map)
    kept = [(i, keys.index(key_of[key])) for i, key in zip(rows, found, strict=True) if key in key_of]
    return other.at(name, [i for i, _ in kept], torch.tensor([label for _, label in kept]))


def _unit(stored: np.ndarray, owner: str) -> Tensor:
    """float32 [n, d] with unit rows."""
    if stored.ndim != 2 or stored.dtype.kind != "f":
        raise DataError(f"{owner} are {stored.dtype} {list(stored.shape)}, expected floats [n, d]")
    rows = torch.from_numpy(stored.astype(np.float64))
    norms = rows.norm(dim=1, keepdim=True)
    bad = (~((norms[:, 0] - 1).abs() < _FAR_OFF)).nonzero()[:, 0]
    if len(bad):
        i = int(bad[0])
        raise DataError(
            f"{owner}: row {i} has length {float(norms[i, 0]):.4g}; rows must be finite and of length one"
        )
    return (rows / norms).float()


def _ids(table: Columns, arrays: dict[str, np.ndarray]) -> list[str]:
    """The file's own ids, or domain, split and row number."""
    if "id" in arrays:
        ids = texts(table.path, "id", arrays["id"])
        if len(ids) != len(table.label):
            raise DataError(
                f"{table.path}: 'id' has {len(ids)} entries, one for each of {len(table.label)} rows is needed"
            )
        return ids
    return [
        f"{table.domains[d]}/{table.splits[s]}/{i:05d}"
        for i, (d, s) in enumerate(zip(table.domain.tolist(), table.split.tolist(), strict=True))
    ]


def _scale(spec: DataSpec, stored: np.ndarray) -> float:
    value = float(stored.reshape(-1)[0]) if stored.size == 1 and stored.dtype.kind in "fiu" else float("nan")
    if not 0 < value < 1e4:
        raise DataError(f"{spec.path}: logit_scale must be one positive number, the factor on the cosine")
    return value
