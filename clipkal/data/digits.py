"""scikit-learn's 1,797 real handwritten digits as a dataset: dark ink on white paper, and eight shifts of it.

ID ("plain") are the scans, enlarged to 64 pixels. Within each class, in the file's order, the first 50 % are
train, the next 10 % val and the last 40 % test. OOD are the test digits inverted, coloured, rotated, blurred
and noisy, and test scans drawn into the world's styles photo, sketch and neon. The scans are those of UCI's
"Optical recognition of handwritten digits" (Alpaydin and Kaynak) that come with scikit-learn.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from clipkal import files
from clipkal.data.corruptions import corrupt
from clipkal.data.names import choose
from clipkal.data.rendered import rendered_set, spoken_dataset
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.spec import DataSpec

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHARES = {"train": (0.0, 0.5), "val": (0.5, 0.6), "test": (0.6, 1.0)}
CHANGES = ("inverted", "coloured", "rotated", "blurred", "noisy")
WORLD_STYLES = ("photo", "sketch", "neon")
WORLD_PER_CLASS = 40
SIDE = 64
VERSION = "1"  # part of every digest; raise it when the look of a domain changes
_PAPER, _INK = 245, 25
_BLUR = 4.0  # standard deviation in pixels


@cache
def scans() -> tuple[Tensor, list[int]]:
    """Ink in 0..1, float [1797, 64, 64], and the labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ink = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    ink = F.interpolate(F.pad(ink, (2, 2, 2, 2)), size=SIDE, mode="bicubic", align_corners=False)[:, 0]
    return ((ink - 0.15) / 0.6).clamp(0, 1), data.target.tolist()


@cache
def split_rows(split: str) -> list[int]:
    """Numbers of the scans of a split, class after class."""
    _, labels = scans()
    low, high = SHARES[split]
    rows: list[int] = []
    for digit in range(len(NAMES)):
        own = [i for i, label in enumerate(labels) if label == digit]
        rows += own[int(len(own) * low) : int(len(own) * high)]
    return rows


@dataclass(frozen=True)
class DigitDecoder:
    """Position -> scan as an image, changed in one of `CHANGES` ways or "plain"."""

    rows: list[int]
    change: str

    def __call__(self, i: int) -> Image.Image:
        row = self.rows[i]
        identity = f"digit/{self.change}/{row}"
        if self.change == "coloured":
            return _coloured(row, random.Random(_seed(identity)))
        plain = _drawn(row, (_INK,) * 3, (_PAPER,) * 3)
        if self.change == "rotated":
            return _rotated(plain, random.Random(_seed(identity)))
        if self.change == "inverted":
            return Image.fromarray(255 - np.asarray(plain))
        if self.change == "blurred":
            return plain.filter(ImageFilter.GaussianBlur(_BLUR))
        if self.change == "noisy":
            return corrupt(plain, "gaussian_noise", 5, identity)
        return plain


def _seed(identity: str) -> int:
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")


Color = tuple[int, int, int]


def _drawn(row: int, ink: Color, paper: Color) -> Image.Image:
    cover = scans()[0][row].numpy()[..., None]
    pixels = cover * np.array(ink) + (1 - cover) * np.array(paper)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _coloured(row: int, stream: random.Random) -> Image.Image:
    """Ink and paper of random colours whose brightness differs by at least 90 of 255."""
    while True:
        ink, paper = ((stream.randrange(256), stream.randrange(256), stream.randrange(256)) for _ in range(2))
        if abs(_luma(ink) - _luma(paper)) >= 90:
            return _drawn(row, ink, paper)


def _luma(color: Color) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _rotated(plain: Image.Image, stream: random.Random) -> Image.Image:
    """Turned by 25 to 60 degrees to either side; not so far that a six could be a nine."""
    angle = stream.choice((-1, 1)) * stream.uniform(25, 60)
    return plain.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=(_PAPER,) * 3)


def load(spec: DataSpec) -> Dataset:
    """The dataset of handwritten digits.

    Raises:
        DataError: a domain is unknown.
    """
    choose("dataset.id_domain", spec.id_domain or "plain", ["plain"])
    wanted = [*CHANGES, *WORLD_STYLES] if spec.domains is None else spec.domains
    splits = {split: digit_set("plain", split) for split in SHARES}
    return spoken_dataset(spec, list(NAMES), splits, {name: _ood(name) for name in wanted})


def _ood(name: str) -> ImageSet:
    choose("dataset.ood: domain", name, [*CHANGES, *WORLD_STYLES])
    if name in CHANGES:
        return digit_set(name, "test")
    return rendered_set(list(NAMES), name, "test", WORLD_PER_CLASS, handwritten=True)


def digit_set(domain: str, split: str) -> ImageSet:
    """The scans of a split in one of the digits' own domains; ids are "domain/split/class/row"."""
    rows = split_rows(split)
    labels = [scans()[1][row] for row in rows]
    ids = [f"{domain}/{split}/{NAMES[label]}/{row:04d}" for row, label in zip(rows, labels, strict=True)]
    digest = files.digest("digits", VERSION, *ids)
    return ImageSet(f"{domain}/{split}", ids, torch.tensor(labels), DigitDecoder(rows, domain), digest)
