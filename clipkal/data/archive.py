"""Packed image archives: one `.npz` with the image files of every domain and split, back to back.

Arrays: `blob` uint8, image i (JPEG or PNG) being the bytes `blob[offset[i]:offset[i+1]]`; `offset` int64
[n+1]; `label`, `domain`, `split` [n] as places in `classes`, `domains`, `splits` (train, val, test); `source`
uint8, the newline-joined original paths in UTF-8, which are the ids (optional). All is read into memory once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipkal import files
from clipkal.data.images import open_image
from clipkal.data.names import fill_templates, renamed
from clipkal.data.partition import (
    Columns,
    open_npz,
    partition,
    read_table,
    require,
    rows_of_shift,
    whole_numbers,
)
from clipkal.data.rows import Rows
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.shifts import shifted_sets
from clipkal.data.spec import DataSpec, Shift
from clipkal.errors import DataError

WHAT = "an .npz with blob, offset, label, domain, split, classes, domains, splits"


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
    rows, table = read(spec.path)
    part = partition(table, spec)
    names = renamed(table.classes, spec.class_names)

    def chosen(name: str, positions: list[int]) -> ImageSet:
        return rows.at(positions).with_labels(name, table.label[positions].tolist())

    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, [[n] for n in names]),
        chosen(f"{part.id_domain}/train", part.train),
        chosen(f"{part.id_domain}/val", part.val) if part.val else None,
        chosen(f"{part.id_domain}/test", part.test),
        {domain: chosen(f"{domain}/test", positions) for domain, positions in part.ood.items()}
        | shifted_sets(spec, table.classes),
    )


def shift_rows(name: str, shift: Shift) -> Rows:
    """The test images of one domain of an archive."""
    rows, table = read(shift.path)
    return rows.at(rows_of_shift(table, name, shift))


def read(path: Path) -> tuple[Rows, Columns]:
    """Every image of an archive, and its columns."""
    arrays = open_npz(path, WHAT)
    require(path, arrays, ("blob", "offset"))
    offset = _offsets(path, arrays["offset"], arrays["blob"])
    table = read_table(path, arrays, len(offset) - 1)
    ids = _ids(path, arrays, table)
    decode = ArchiveDecoder(arrays["blob"], offset, [f"{path}: {i}" for i in ids])
    return Rows(ids, [table.classes[label] for label in table.label], decode, files.sha256(path)), table


def _offsets(path: Path, offset: np.ndarray, blob: np.ndarray) -> np.ndarray:
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise DataError(f"{path}: blob is {blob.dtype} {list(blob.shape)}, expected uint8 bytes")
    offset = whole_numbers(path, "offset", offset)
    rising = offset.ndim == 1 and len(offset) > 1 and offset[0] >= 0 and bool((np.diff(offset) >= 0).all())
    if not rising or offset[-1] > len(blob):
        raise DataError(f"{path}: offset must rise from 0 to at most the {len(blob)} bytes of blob")
    return offset


def _ids(path: Path, arrays: dict[str, np.ndarray], table: Columns) -> list[str]:
    """The original paths, or domain, split and row number where the archive has none."""
    if "source" not in arrays:
        rows = zip(table.domain.tolist(), table.split.tolist(), strict=True)
        return [f"{table.domains[d]}/{table.splits[s]}/{i:05d}" for i, (d, s) in enumerate(rows)]
    try:
        if arrays["source"].dtype != np.uint8:
            raise ValueError(f"is {arrays['source'].dtype}, expected uint8 bytes")
        ids = arrays["source"].tobytes().decode("utf-8").split("\n")
    except ValueError as error:
        raise DataError(f"{path}: source, the names of its images, cannot be read ({error})") from error
    if len(ids) != len(table.label):
        raise DataError(f"{path}: source names {len(ids)} files but there are {len(table.label)} images")
    return ids
