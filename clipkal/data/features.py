"""Precomputed features: an `.npz` that holds the images of every domain and split as rows.

Arrays: `image_features` [n, d], `text_features` [C, d], `logit_scale` (the factor on the cosine, not its
logarithm), `label`, `domain`, `split` [n] as places in `classes`, `domains`, `splits` (train, val, test);
`id` [n] optional. Features may be float16; they become float32 and are normalised again, since rounding takes
them off the sphere.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipkal.data.names import fill_templates, renamed
from clipkal.data.partition import Table, open_npz, partition, read_table, require
from clipkal.data.sets import Dataset, FeatureSet
from clipkal.data.spec import DataSpec
from clipkal.errors import DataError

_FAR_OFF = 0.05  # stored rows whose length differs more than this from one were never normalised: refuse them


def load(spec: DataSpec) -> Dataset:
    """Reads the file at `spec.path`.

    Raises:
        DataError: the file, an array, a domain or a split is missing, or a feature is zero, not finite or not
            normalised; or the config asks for corruptions or folders, which features cannot give.
    """
    if spec.corruptions or spec.elsewhere:
        raise DataError(
            f"dataset.ood: {spec.path.name} holds features, not images; only its own domains can be OOD"
        )
    arrays = open_npz(
        spec.path, "an .npz with image_features, text_features, logit_scale, label, domain, split"
    )
    require(spec.path, arrays, ("image_features", "text_features", "logit_scale"))
    features = _unit(arrays["image_features"], f"{spec.path}: image_features")
    text = _unit(arrays["text_features"], f"{spec.path}: text_features")
    table = read_table(spec.path, arrays, len(features))
    if text.shape != (len(table.classes), features.shape[1]):
        expected = [len(table.classes), features.shape[1]]
        raise DataError(f"{spec.path}: text_features are {list(text.shape)}, expected {expected}")
    ids = _ids(table, arrays)
    labels = torch.from_numpy(table.label)
    part = partition(table, spec)

    def rows(name: str, chosen: list[int]) -> FeatureSet:
        return FeatureSet(name, [ids[i] for i in chosen], labels[chosen], features[chosen])

    names = renamed(table.classes, spec.class_names)
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        rows(f"{part.id_domain}/train", part.train),
        rows(f"{part.id_domain}/val", part.val) if part.val else None,
        rows(f"{part.id_domain}/test", part.test),
        {domain: rows(f"{domain}/test", chosen) for domain, chosen in part.ood.items()},
        text,
        _scale(spec, arrays["logit_scale"]),
    )


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


def _ids(table: Table, arrays: dict[str, np.ndarray]) -> list[str]:
    """The file's own ids, or domain, split and row number."""
    if "id" in arrays:
        if arrays["id"].shape != table.label.shape:
            raise DataError(f"{table.path}: 'id' has shape {list(arrays['id'].shape)}, one per row is needed")
        return [str(i) for i in arrays["id"]]
    return [
        f"{table.domains[d]}/{table.splits[s]}/{i:05d}"
        for i, (d, s) in enumerate(zip(table.domain.tolist(), table.split.tolist(), strict=True))
    ]


def _scale(spec: DataSpec, stored: np.ndarray) -> float:
    value = float(stored.reshape(-1)[0]) if stored.size == 1 else float("nan")
    if not 0 < value < 1e4:
        raise DataError(f"{spec.path}: logit_scale must be one positive number, the factor on the cosine")
    return value
