"""Decoding policy: what becomes of a file between disk and an RGB image.

As torchvision's `ImageFolder` and CLIP's reference preprocessing, to the bit: the EXIF rotation is ignored, an
alpha channel is dropped, not blended, CMYK is read as Adobe writes it, and a JPEG is decoded at its full size.
Beyond them: 16-bit greyscale is scaled to 8 bits (a plain conversion would clip it to white), an animation
gives its first frame, a file that cannot be decoded in full is an error that names it, and so is an image of
more pixels than Pillow's own limit against decompression bombs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from clipkal import files
from clipkal.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
    | ({".avif"} if find_spec("PIL._avif") else set())  # Pillow reads it from 11.3 on, where it is built so
)
WAY_OUT = "replace the file, or set data.on_bad_image=skip to leave such images out"


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """Decodes a file, or the bytes of one, to RGB.

    Args:
        source: where the bytes are.
        name: what to call the image in errors.

    Raises:
        DataError: the file is missing, empty, truncated, no image, or larger than Pillow's pixel limit.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _refuse_bombs(image)
            image.seek(0)
            image.load()
            return to_rgb(image)
    except Exception as error:
        # On bad bytes Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        reason = _reason(source, error)
        raise DataError(f"{name}: cannot be read as an image ({reason}); {WAY_OUT}") from error


def _refuse_bombs(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels exceed the limit of {limit}"
        )


def _reason(source: Path | bytes, error: Exception) -> str:
    if isinstance(source, bytes):
        return "it is empty" if not source else str(error).replace("\n", " ")
    if not source.exists():
        return "no such file"
    if source.is_file() and source.stat().st_size == 0:
        return "the file is empty"
    return str(error).replace(str(source), source.name).replace("\n", " ") or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in any of Pillow's modes as 8-bit RGB; itself where it is that."""
    if image.mode in {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}:
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in {"P", "PA"} and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """uint8 from wide pixels: 16-bit integers over 65535; 32-bit integers that fit a byte as they are; floats in 0..1.

    Floats beyond 1 are taken for 0..255; what lies outside is clipped.
    """
    values = np.nan_to_num(pixels.astype(np.float64))
    top = values.max(initial=0.0)
    wide = mode.startswith("I;16") or (mode == "I" and top > 255)
    factor = 255 / 65535 if wide else 255.0 if mode == "F" and top <= 1 else 1.0
    return np.rint(np.clip(values * factor, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class FileDecoder:
    """Position -> image of files given by their paths relative to `folder`."""

    folder: Path
    relative: list[str]

    def __call__(self, i: int) -> Image.Image:
        path = self.folder / self.relative[i]
        return open_image(path, str(path))


_CONTENTS: ContextVar[bool] = ContextVar("contents", default=False)


@contextmanager
def told_by_contents(verify: bool) -> Iterator[None]:
    """Within the block, where `verify` says so, `file_stamps` reads every file (`data.verify=true`)."""
    token = _CONTENTS.set(verify)
    try:
        yield
    finally:
        _CONTENTS.reset(token)


def file_stamps(folder: Path, relative: Sequence[str]) -> list[str | None]:
    """Size and time of change of each file, None where it is missing, or its contents: see `files.stamps`."""
    return files.stamps(folder, relative, _CONTENTS.get())
