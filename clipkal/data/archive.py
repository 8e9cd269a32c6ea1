"""Packed image archives: one `.npz` with the image files of every domain and split, back to back.

Arrays: `blob` uint8, image i (JPEG or PNG) being the bytes `blob[offset[i]:offset[i+1]]`; `offset` int64
[n+1]; `label`, `domain`, `split` [n] as places in `classes`, `domains`, `splits` (train, val, test); `source`
uint8, the newline-joined original paths in UTF-8, which are the ids (optional). All is read into memory once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from clipkal import files
from clipkal.data.images import open_image
from clipkal.data.names import fill_templates, renamed
from clipkal.data.partition import Table, open_npz, partition, read_table, require
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.spec import DataSpec
from clipkal.errors import DataError


@dataclass(frozen=True)
class ArchiveDecoder:
    """Row number -> image, out of the bytes in memory."""

    blob: np.ndarray  # uint8 [bytes]
    offset: np.ndarray  # int64 [n + 1]
    names: list[str]

    def __call__(self, i: int) -> Image.Image:
        return open_image(self.blob[self.offset[i] : self.offset[i + 1]].tobytes(), self.names[i])


def load(spec: DataSpec) -> Dataset:
    """Reads the archive at `spec.path`.

    Raises:
        DataError: the file, an array, a domain or a split is missing, or the offsets do not fit the blob.
    """
    arrays = open_npz(spec.path, "an .npz with blob, offset, label, domain, split, classes, domains, splits")
    require(spec.path, arrays, ("blob", "offset"))
    offset = _offsets(spec, arrays["offset"], arrays["blob"])
    table = read_table(spec.path, arrays, len(offset) - 1)
    ids = _ids(spec, arrays, table)
    decode = ArchiveDecoder(arrays["blob"], offset, [f"{spec.path}: {i}" for i in ids])
    everything = ImageSet(spec.name, ids, torch.from_numpy(table.label), decode, files.sha256(spec.path))
    part = partition(table, spec)
    names = renamed(table.classes, spec.class_names)
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        everything.subset(part.train, f"{part.id_domain}/train"),
        everything.subset(part.val, f"{part.id_domain}/val") if part.val else None,
        everything.subset(part.test, f"{part.id_domain}/test"),
        {domain: everything.subset(rows, f"{domain}/test") for domain, rows in part.ood.items()},
    )


def _offsets(spec: DataSpec, offset: np.ndarray, blob: np.ndarray) -> np.ndarray:
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise DataError(f"{spec.path}: blob is {blob.dtype} {list(blob.shape)}, expected uint8 bytes")
    offset = offset.astype(np.int64)
    rising = offset.ndim == 1 and len(offset) > 1 and offset[0] >= 0 and bool((np.diff(offset) >= 0).all())
    if not rising or offset[-1] > len(blob):
        raise DataError(f"{spec.path}: offset must rise from 0 to at most the {len(blob)} bytes of blob")
    return offset


def _ids(spec: DataSpec, arrays: dict[str, np.ndarray], table: Table) -> list[str]:
    """The original paths, or domain, split and row number where the archive has none."""
    if "source" not in arrays:
        rows = zip(table.domain.tolist(), table.split.tolist(), strict=True)
        return [f"{table.domains[d]}/{table.splits[s]}/{i:05d}" for i, (d, s) in enumerate(rows)]
    ids = arrays["source"].tobytes().decode("utf-8", errors="replace").split("\n")
    if len(ids) != len(table.label):
        raise DataError(f"{spec.path}: source names {len(ids)} files but there are {len(table.label)} images")
    return ids
