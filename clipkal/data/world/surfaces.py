"""Colours, patterns on things and backgrounds behind them.

Images are float [n, 3, 64, 64] in 0..1, masks float [n, 64, 64].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64  # side of an image in pixels

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.2, 0.65, 0.25),
    "blue": (0.2, 0.35, 0.85),
    "yellow": (0.93, 0.83, 0.2),
    "purple": (0.55, 0.25, 0.7),
    "orange": (0.95, 0.55, 0.15),
    "pink": (0.95, 0.6, 0.75),
    "brown": (0.5, 0.33, 0.2),
    "white": (0.94, 0.94, 0.94),
    "black": (0.12, 0.12, 0.12),
    "gray": (0.5, 0.5, 0.5),
    "teal": (0.15, 0.6, 0.6),
}
PALETTE = torch.tensor(list(COLORS.values()))
PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "shiny")
BACKGROUNDS: tuple[str, ...] = ("plain", "grass", "sand", "sky", "wood", "brick", "night", "water")


def pixel_grid() -> Tensor:
    """Coordinates of the pixel centres: [2, 64, 64], x to the right and y downward, in -1..1."""
    centres = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y])


GRID = pixel_grid()


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform numbers in 0..1."""
    return torch.rand(*shape, generator=generator)


def smooth_noise(generator: torch.Generator, n: int, cells: int) -> Tensor:
    """Value noise [n, 64, 64] in 0..1: `cells` random values a side, interpolated."""
    coarse = uniform(generator, n, 1, cells, cells)
    return F.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=False)[:, 0]


def blur(images: Tensor, radius: int = 1) -> Tensor:
    """A box blur of [n, c, H, W] over (2 radius + 1)² pixels."""
    return F.avg_pool2d(F.pad(images, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)


def blend(below: Tensor, above: Tensor, weight: Tensor) -> Tensor:
    """`above` over `below` with a mask [n, 64, 64]; colours [n, 3, 1, 1] broadcast."""
    return torch.lerp(*torch.broadcast_tensors(below, above, weight[:, None]))


def _rgb(r: float, g: float, b: float) -> Tensor:
    return torch.tensor((r, g, b)).view(1, 3, 1, 1)


def _plain(g: torch.Generator, n: int) -> Tensor:
    color = PALETTE[torch.randint(len(PALETTE), (n,), generator=g)]
    other = (color + 0.25 * (uniform(g, n, 3) - 0.5)).clamp(0, 1)
    return blend(color.view(n, 3, 1, 1), other.view(n, 3, 1, 1), smooth_noise(g, n, 4))


def _grass(g: torch.Generator, n: int) -> Tensor:
    blades = 0.7 * smooth_noise(g, n, 32) + 0.3 * smooth_noise(g, n, 12)
    return blend(_rgb(0.15, 0.4, 0.1), _rgb(0.45, 0.7, 0.25), blades)


def _sand(g: torch.Generator, n: int) -> Tensor:
    grains = 0.5 * smooth_noise(g, n, 32) + 0.5 * smooth_noise(g, n, 4)
    return blend(_rgb(0.8, 0.7, 0.5), _rgb(0.93, 0.86, 0.68), grains)


def _sky(g: torch.Generator, n: int) -> Tensor:
    clouds = (0.6 * smooth_noise(g, n, 12) + 0.6 * smooth_noise(g, n, 4) - 0.35) * 1.6 + 0.3 * GRID[1]
    return blend(_rgb(0.4, 0.6, 0.9), _rgb(0.95, 0.97, 1.0), clouds.clamp(0, 1))


def _wood(g: torch.Generator, n: int) -> Tensor:
    frequency, phase = 8 + 10 * uniform(g, n, 1, 1), 2 * math.pi * uniform(g, n, 1, 1)
    rings = 0.5 + 0.5 * torch.sin(frequency * GRID[1] + 4 * smooth_noise(g, n, 4) + phase)
    return blend(_rgb(0.4, 0.25, 0.13), _rgb(0.68, 0.47, 0.28), 0.7 * rings + 0.3 * smooth_noise(g, n, 32))


def _brick(g: torch.Generator, n: int) -> Tensor:
    row = GRID[1] * 4 + 2 * math.pi * uniform(g, n, 1, 1)
    column = GRID[0] * 2.5 + 0.5 * torch.floor(row)
    mortar = (torch.remainder(row, 1) < 0.15) | (torch.remainder(column, 1) < 0.1)
    weight = 0.9 * mortar + 0.1 * smooth_noise(g, n, 32)
    return blend(_rgb(0.62, 0.27, 0.2), _rgb(0.8, 0.75, 0.7), weight)


def _night(g: torch.Generator, n: int) -> Tensor:
    stars = 0.9 * (smooth_noise(g, n, 32) > 0.85) + 0.12 * smooth_noise(g, n, 4)
    return blend(_rgb(0.02, 0.03, 0.1), _rgb(1.0, 1.0, 0.9), stars.clamp(0, 1))


def _water(g: torch.Generator, n: int) -> Tensor:
    frequency, phase = 10 + 13 * uniform(g, n, 1, 1), 2 * math.pi * uniform(g, n, 1, 1)
    swell = frequency * GRID[1] + 3 * torch.sin(3 * GRID[0] + phase) + 3 * smooth_noise(g, n, 12)
    return blend(_rgb(0.08, 0.3, 0.5), _rgb(0.4, 0.7, 0.8), 0.4 + 0.4 * torch.sin(swell))


_PAINTERS: tuple[Callable[[torch.Generator, int], Tensor], ...] = (
    *(_plain, _grass, _sand, _sky),
    *(_wood, _brick, _night, _water),
)


def paint_backgrounds(kinds: Tensor, generator: torch.Generator) -> Tensor:
    """Backgrounds [n, 3, 64, 64] of the kinds (long [n], places in `BACKGROUNDS`)."""
    images = torch.empty(len(kinds), 3, SIZE, SIZE)
    for kind, painter in enumerate(_PAINTERS):
        rows = (kinds == kind).nonzero()[:, 0]
        if len(rows):
            images[rows] = painter(generator, len(rows)).expand(-1, 3, SIZE, SIZE)
    return images


def paint_patterns(kinds: Tensor, p: Tensor, colors: Tensor, generator: torch.Generator) -> Tensor:
    """The material of things [n, 3, 64, 64]: kinds (long [n], places in `PATTERNS`) at coordinates `p`.

    `colors` is [n, 3] in 0..1; the second colour of a pattern is a dark or a light version of it.
    """
    n = len(kinds)
    frequency = 5 + 4 * uniform(generator, n, 1, 1)
    x, y = p[:, 0], p[:, 1]
    mask = torch.zeros(n, SIZE, SIZE)
    for kind, wave in (
        (1, lambda f, x, y: torch.sin(2 * f * x) > 0.2),
        (2, lambda f, x, y: torch.sin(1.6 * f * x) * torch.sin(1.6 * f * y) > 0.35),
        (3, lambda f, x, y: torch.sin(f * x) * torch.sin(f * y) > 0),
    ):
        rows = (kinds == kind).nonzero()[:, 0]
        if len(rows):
            mask[rows] = wave(frequency[rows], x[rows], y[rows]).float()
    bright = colors.mean(dim=1, keepdim=True) > 0.5
    second = torch.where(bright, 0.45 * colors, 0.3 * colors + 0.7)
    return blend(colors.view(n, 3, 1, 1), second.view(n, 3, 1, 1), mask)
