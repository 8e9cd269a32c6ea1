"""Images as NumPy arrays: `<name>_data.npy` beside `<name>_labels.npy`, as CIFAR-10.1 has them.

The data are uint8 [n, height, width, 3]; the labels are n numbers, places in the classes of ID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipkal import files
from clipkal.data.rows import Rows
from clipkal.data.spec import Shift
from clipkal.errors import DataError

DATA, LABELS = "_data.npy", "_labels.npy"


@dataclass(frozen=True)
class ArrayDecoder:
    """Position -> image of uint8 [n, height, width, 3]."""

    pixels: np.ndarray

    def __call__(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])


def shift_rows(name: str, shift: Shift) -> Rows:
    """The images of an OOD set that is a pair of arrays; ids are "name/number".

    Raises:
        DataError: a file is missing or no such array, or there is not one label an image.
    """
    if not shift.path.name.endswith(DATA):
        raise DataError(f"{shift.path}: must end in {DATA}, so that its labels are found beside it")
    pixels = _array(shift.path)
    labels = _array(shift.path.with_name(shift.path.name.removesuffix(DATA) + LABELS))
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise DataError(
            f"{shift.path}: holds {pixels.dtype} {list(pixels.shape)}, expected uint8 [n, height, width, 3]"
        )
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{shift.path}: has {len(pixels)} images but the labels are {labels.dtype} {list(labels.shape)}"
        )
    ids = [f"{name}/{i:05d}" for i in range(len(pixels))]
    if (low := labels.min()) < 0:
        raise DataError(
            f"{shift.path}: has images without a label ({low}), the first: {int(labels.argmin())}"
        )
    return Rows(ids, [str(label) for label in labels], ArrayDecoder(pixels), files.sha256(shift.path))


def _array(path: Path) -> np.ndarray:
    """Never unpickles."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file raises many kinds
        raise DataError(f"{path}: is not a readable .npy file ({error})") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path}: is not a .npy file but an .npz of several arrays")
    return found
