"""OOD sets from another place than their dataset: read by what lies there, under the labels of ID."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from clipkal import files
from clipkal.data.fetch import fetch, file_name
from clipkal.data.matching import as_shift
from clipkal.data.sets import Dataset, Decoder, ImageSet
from clipkal.data.spec import DataSpec, Shift
from clipkal.errors import DataError

KINDS = {".npz": "archive", ".npy": "arrays", ".csv": "table"}  # suffix -> module; a folder is a tree


def shifted_sets(spec: DataSpec, keys: Sequence[str]) -> dict[str, ImageSet]:
    """The sets of `spec.shifts` by name.

    Args:
        spec: of the ID dataset.
        keys: C class names of ID in label order, as its source has them.

    Raises:
        DataError: a place is missing and may not be fetched, is not what its suffix says, or has a class that
            ID lacks.
    """
    return {name: _shifted(name, shift, keys, spec.download) for name, shift in spec.shifts.items()}


def with_shifts(dataset: Dataset, spec: DataSpec, keys: Sequence[str]) -> Dataset:
    """The dataset with the sets of `spec.shifts`; see `shifted_sets`."""
    return replace(dataset, ood=dataset.ood | shifted_sets(spec, keys)) if spec.shifts else dataset


def _shifted(name: str, shift: Shift, keys: Sequence[str], download: bool) -> ImageSet:
    require(name, shift, download)
    kind = "tree" if shift.path.is_dir() else KINDS.get(shift.path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{shift.path}: OOD set {name!r} must be a folder of class folders or one of {' '.join(KINDS)}"
        )
    rows = importlib.import_module(f"clipkal.data.{kind}").shift_rows(name, shift)
    one = as_shift(name, rows, keys, shift.path, shift.class_map)
    if not shift.border:
        return one
    digest = files.digest(one.digest, f"border {shift.border}")
    return replace(one, decode=_Bordered(one.decode, shift.border), digest=digest)


def require(name: str, shift: Shift, download: bool) -> None:
    """Fetches what is missing of an OOD set where that is wanted and known, or raises `DataError`."""
    folder = shift.path.parent
    lacking = {url: sha for url, sha in shift.urls.items() if not (folder / file_name(url)).exists()}
    if lacking and download:
        fetch(folder, lacking)
    elif not shift.path.exists():
        by_hand = f"set dataset.download=true to fetch it, or put {' and '.join(lacking)} there, " * bool(
            lacking
        )
        raise DataError(
            f"{shift.path}: no such file or folder; {by_hand}check dataset.ood, or leave {name!r} out of it"
        )


@dataclass(frozen=True)
class _Bordered:
    """Decoder without the outermost `border` pixels of every side (ObjectNet's images have a red frame)."""

    decode: Decoder
    border: int

    def __call__(self, i: int) -> Image.Image:
        image = self.decode(i)
        if min(image.size) <= 2 * self.border:
            raise DataError(
                f"image {i}: {image.width} x {image.height} pixels have no room for a border of {self.border}"
            )
        return ImageOps.crop(image, self.border)
