"""From class and style to pixels: `render` for any batch, `render_split` for fixed data sets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.data.world.catalogue import SHAPES, Chance
from clipkal.data.world.digits import digit_distance
from clipkal.data.world.shapes import CLASSES, DIGITS
from clipkal.data.world.styles import PAINTERS, STYLES, Scene
from clipkal.data.world.surfaces import BACKGROUNDS, GRID, PALETTE, PATTERNS, SIZE, smooth_noise, uniform

BLOCK = 8  # images that share one random stream in `render_split`
HANDWRITTEN_SHARES = {"train": (0.0, 0.5), "val": (0.5, 0.6), "test": (0.6, 1.0)}
_DRAWINGS = [shape.draw for shape in SHAPES.values()]


@dataclass(frozen=True)
class Attributes:
    """What a caption may mention besides class and style; one entry per image."""

    color: Tensor  # long [n], places in COLORS
    pattern: Tensor  # long [n], places in PATTERNS
    background: Tensor  # long [n], places in BACKGROUNDS
    size: Tensor  # [n] half extent of the thing in units of half the image
    offset: Tensor  # [n, 2] centre (x, y), -1..1, y downward


def _distance(
    classes: Tensor, p: Tensor, generator: torch.Generator, handwritten: tuple[float, float] | None
) -> Tensor:
    """Signed distance [n, 64, 64] of each image's thing at its own coordinates `p`."""
    chance = uniform(generator, len(classes), 4)
    distance = torch.empty(p.shape[0], SIZE, SIZE)
    for c in classes.unique().tolist():
        if c < len(SHAPES):
            rows = (classes == c).nonzero()[:, 0]
            distance[rows] = _DRAWINGS[c](p[rows], Chance(chance[rows]))
    rows = (classes >= len(SHAPES)).nonzero()[:, 0]
    if len(rows):
        distance[rows] = digit_distance(p[rows], classes[rows] - len(SHAPES), generator, handwritten)
    return distance


def _object_coordinates(
    g: torch.Generator, mirrored: Tensor, difficulty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates on the thing [n, 2, 64, 64], its size [n] and offset [n, 2], after a random placement.

    The thing is scaled, stretched, sheared, turned by up to 25 degrees and bent; `difficulty` scales all but
    the size.
    """
    n = len(mirrored)
    size = 0.46 + 0.34 * uniform(g, n)
    turn = (uniform(g, n, 1, 1) - 0.5) * 2 * math.radians(25) * difficulty
    aspect = 1 + 0.25 * (uniform(g, n, 1, 1) - 0.5) * difficulty
    shear = 0.3 * (uniform(g, n, 1, 1) - 0.5) * difficulty
    room = (1 - 1.02 * size).clamp(min=0)
    offset = (2 * uniform(g, n, 2) - 1) * room[:, None]
    flip = torch.where((uniform(g, n) < 0.5) & mirrored, -1.0, 1.0).view(n, 1, 1)
    dx, dy = GRID[0] - offset[:, 0].view(n, 1, 1), GRID[1] - offset[:, 1].view(n, 1, 1)
    x, y = dx * torch.cos(turn) + dy * torch.sin(turn), dy * torch.cos(turn) - dx * torch.sin(turn)
    scale = size.view(n, 1, 1)
    x, y = (x + shear * y) / (scale * aspect * flip), y * aspect / scale
    bend = 0.1 * difficulty
    x = x + bend * (smooth_noise(g, n, 5) - 0.5)
    y = y + bend * (smooth_noise(g, n, 5) - 0.5)
    return torch.stack([x, y], dim=1), size, offset


def render(
    classes: Tensor,
    styles: Tensor,
    seed: int,
    *,
    difficulty: float = 1.0,
    handwritten: tuple[float, float] | None = None,
) -> tuple[Tensor, Attributes]:
    """Draw n images; the same arguments give the same images.

    Args:
        classes: long [n], places in `CLASSES`.
        styles: long [n], places in `STYLES`.
        seed: of the one random stream that all n images share.
        difficulty: 0..1, how much the things are turned, bent and cluttered.
        handwritten: share (low, high) of scikit-learn's scans from which digits are taken; None draws fonts.

    Returns:
        uint8 images [n, 3, 64, 64] and the attributes of the scenes.
    """
    n = len(classes)
    g = torch.Generator().manual_seed(seed)
    p, size, offset = _object_coordinates(g, classes < len(SHAPES), difficulty)
    color = torch.randint(len(PALETTE), (n,), generator=g)
    pattern = torch.randint(len(PATTERNS), (n,), generator=g)
    background = torch.randint(len(BACKGROUNDS), (n,), generator=g)
    colors = (PALETTE[color] + 0.12 * (uniform(g, n, 3) - 0.5)).clamp(0, 1)
    distance = _distance(classes, p, g, handwritten)
    pixel = (2 / SIZE / size).view(n, 1, 1)
    scene = Scene(distance, pixel, p, colors, pattern, background, clutter=difficulty)
    images = torch.empty(n, 3, SIZE, SIZE)
    for s in styles.unique().tolist():
        rows = (styles == s).nonzero()[:, 0]
        images[rows] = PAINTERS[STYLES[s]](scene.select(rows), g)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels, Attributes(color, pattern, background, size, offset)


def block_seed(class_name: str, style: str, split: str, seed: int, block: int) -> int:
    """A 63-bit seed that no other block of any split shares, short of a SHA-256 collision."""
    key = f"clipkal-world/{class_name}/{style}/{split}/{seed}/{block}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def render_split(
    class_names: Sequence[str],
    style: str,
    split: str,
    per_class: int,
    seed: int = 0,
    *,
    handwritten: bool = False,
) -> tuple[Tensor, Tensor]:
    """The fixed images of one split of one style: `per_class` of each class, class after class.

    Image i of a class depends on (class, style, split, seed, i) alone: not on the other classes, on
    `per_class`, or on how many images are asked for at once. Splits have disjoint random streams; with
    `handwritten` (digits only) they also draw from disjoint scans.

    Returns:
        uint8 images [n, 3, 64, 64] and long labels [n], places in `class_names`.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    if split not in HANDWRITTEN_SHARES:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(HANDWRITTEN_SHARES)}")
    if unknown := [name for name in class_names if name not in CLASSES]:
        raise ValueError(f"unknown classes: {', '.join(unknown)}")
    if handwritten and (others := [name for name in class_names if name not in DIGITS]):
        raise ValueError(f"only digits can be handwritten, not {', '.join(others)}")
    share = HANDWRITTEN_SHARES[split] if handwritten else None
    tag = f"{style}-handwritten" if handwritten else style
    images = []
    for name in class_names:
        classes = torch.full((BLOCK,), CLASSES.index(name))
        styles = torch.full((BLOCK,), STYLES.index(style))
        for block in range(math.ceil(per_class / BLOCK)):
            pixels, _ = render(classes, styles, block_seed(name, tag, split, seed, block), handwritten=share)
            images.append(pixels[: per_class - block * BLOCK])
    labels = torch.arange(len(class_names)).repeat_interleave(per_class)
    return torch.cat(images) if images else torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8), labels
