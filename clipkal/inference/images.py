"""What people give for images: paths, folders, patterns, PIL images, arrays and tensors, decoded one by one when asked.

Files are decoded as in a run (`clipkal.data.images`). An array is one image [H, W] or [H, W, channels], or several
[N, H, W, channels]; a tensor has its channels first, [channels, H, W] or [N, channels, H, W]. Both hold bytes 0 … 255, or
floats 0 … 1, which are rounded to bytes: they are images, not what a model's transform makes of them.
"""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from clipkal import files
from clipkal.data.images import EXTENSIONS, WAY_OUT, open_image, to_rgb
from clipkal.data.walk import ending, is_image, is_junk, told
from clipkal.errors import DataError

log = logging.getLogger(__name__)
CHANNELS = (1, 3, 4)


class Images:
    """N images.

    Attributes:
        name: what they are called in messages.
        ids: N names: the path of a file, else "image 0", "image 1", …
    """

    name = "the images"

    def __init__(self, sources: Sequence[tuple[str, Any]]):
        self.ids = [name for name, _ in sources]
        self._sources = [source for _, source in sources]

    def __len__(self) -> int:
        return len(self.ids)

    def decode(self, i: int) -> Image.Image:
        """RGB; DataError, which names the image, where it cannot be had."""
        source = self._sources[i]
        try:
            if isinstance(source, Path):
                return open_image(source, str(source))
            return to_rgb(source if isinstance(source, Image.Image) else Image.fromarray(_bytes(source)))
        except DataError as error:
            raise DataError(str(error).removesuffix(f"; {WAY_OUT}")) from error
        except Exception as error:  # of Pillow: a closed file, a truncated one, an odd mode
            reason = str(error).replace("\n", " ") or type(error).__name__
            raise DataError(f"{self.ids[i]}: {reason}") from error


def gather(given: Any) -> Images:
    """One image or any number of them, in order.

    Args:
        given: a path, a folder (all images below it, sorted), a pattern such as "photos/*.jpg", a PIL image, an array, a
            tensor, or an iterable of these; what has `ids` and `decode`, as an `ImageSet`, is taken as it is.

    Raises:
        DataError: there is no such file, a folder or pattern holds no image, nothing was given, or something that is no
            image.
    """
    if hasattr(given, "ids") and hasattr(given, "decode"):
        return given
    sources = list(_sources(given, []))
    if not sources:
        raise DataError("no image was given; give files, folders, patterns, PIL images, arrays or tensors")
    return Images(sources)


def _sources(given: Any, before: list[int]) -> Iterator[tuple[str, Any]]:
    """(name, source) of every image; `before` counts those without a name of their own."""
    if isinstance(given, str | os.PathLike):
        yield from ((str(path), path) for path in _paths(given))
    elif isinstance(given, Tensor | np.ndarray | Image.Image):
        for one in _single(given):
            yield f"image {len(before)}", one
            before.append(1)
    elif isinstance(given, Iterable) and not isinstance(given, bytes | dict):
        for one in given:
            yield from _sources(one, before)
    else:
        raise DataError(
            f"{type(given).__name__} is no image; give a path, a PIL image, an array or a tensor, or a list of them"
        )


def _paths(given: str | os.PathLike[str]) -> list[Path]:
    path = files.expanded(os.fspath(given))
    if path.is_dir():
        found = sorted(_below(path))
        if not found:
            raise DataError(f"{path}: no image in this folder; images end in {', '.join(sorted(EXTENSIONS))}")
        return found
    if path.exists() or not glob.has_magic(str(path)):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        return [path]
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))  # noqa: PTH207 (of an absolute path too)
    if not found:
        raise DataError(f"{path}: no file is named like this pattern")
    return [one for path in found for one in (sorted(_below(path)) if path.is_dir() else [path])]


def _below(folder: Path) -> Iterator[Path]:
    """The images below a folder by their endings; what is hidden is left out, and other files are told in one line.

    Links to folders are followed, each folder once.
    """
    seen: set[str] = set()
    others: Counter[str] = Counter()
    for place, inside, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            inside[:] = []
            continue
        seen.add(real)
        inside[:] = sorted(one for one in inside if not one.startswith("."))
        for name in names:
            if is_image(name) and not is_junk(name):
                yield Path(place, name)
            elif not is_junk(name):
                others[ending(name)] += 1
    if others:
        log.warning("%s: files left out since they are not read as images: %s", folder, told(others))


def _single(given: Tensor | np.ndarray | Image.Image) -> Iterator[Image.Image | np.ndarray]:
    """Images of their own, arrays with their channels last."""
    if isinstance(given, Image.Image):
        yield given
        return
    first = isinstance(given, Tensor)
    array = _numpy(given) if isinstance(given, Tensor) else given
    if first and array.ndim in (3, 4):
        array = np.moveaxis(array, -3, -1)
    fits = array.ndim == 2 or (array.ndim in (3, 4) and array.shape[-1] in CHANNELS)
    if not fits or 0 in array.shape:
        shape, order = list(given.shape), "[N, 3, H, W]" if first else "[N, H, W, 3]"
        raise DataError(
            f"{'a tensor' if first else 'an array'} of shape {shape} is no image; give {order}, or one image of it "
            f"({'tensors have their channels first' if first else 'arrays have their channels last'})"
        )
    yield from array if array.ndim == 4 else [array]


def _numpy(tensor: Tensor) -> np.ndarray:
    """The same values; those of numbers that numpy does not have, as bfloat16, in float32, which holds each of them."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).resolve_conj().resolve_neg().numpy()


def _bytes(array: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3 or 4] of bytes or of floats 0 … 1."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind not in "fiu":
        raise ValueError(f"its numbers are of type {array.dtype}; give bytes 0 … 255 or floats 0 … 1")
    elif array.dtype != np.uint8:
        low, high = float(np.min(array)), float(np.max(array))
        floats, top = array.dtype.kind == "f", 1 if array.dtype.kind == "f" else 255
        if not (0 <= low <= high <= top):
            raise ValueError(
                f"its values go from {low:g} to {high:g}; give bytes 0 … 255 or floats 0 … 1, before any normalisation"
            )
        array = np.rint(array * (255 if floats else 1)).astype(np.uint8)
    return np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
