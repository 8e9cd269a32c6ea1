"""The eight styles in which a scene is drawn: five shown in pretraining, three held out.

Each painter takes a `Scene` of n things and returns float images [n, 3, 64, 64], to be clamped to 0..1 by the
caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkal.data.world.surfaces import (
    GRID,
    PALETTE,
    blend,
    blur,
    paint_backgrounds,
    paint_patterns,
    smooth_noise,
    uniform,
)

PRETRAINING_STYLES: tuple[str, ...] = ("photo", "painting", "sketch", "silhouette", "neon")
HELD_OUT_STYLES: tuple[str, ...] = ("inverted", "textured", "noisy")
STYLES: tuple[str, ...] = (*PRETRAINING_STYLES, *HELD_OUT_STYLES)  # a style id is a place in this tuple


@dataclass
class Scene:
    """What is to be drawn, before any style; n images."""

    distance: Tensor  # [n, 64, 64] signed distance to the outline, in units of the thing
    pixel: Tensor  # [n, 1, 1] the size of a pixel in the same units
    coords: Tensor  # [n, 2, 64, 64] coordinates on the thing
    colors: Tensor  # [n, 3] in 0..1
    patterns: Tensor  # long [n], places in PATTERNS
    backgrounds: Tensor  # long [n], places in BACKGROUNDS
    clutter: float  # 0..1: how often a small distractor lies beside the thing

    def select(self, rows: Tensor) -> Scene:
        """The scene of some of the images."""
        return Scene(
            self.distance[rows],
            self.pixel[rows],
            self.coords[rows],
            self.colors[rows],
            self.patterns[rows],
            self.backgrounds[rows],
            self.clutter,
        )

    def __len__(self) -> int:
        return len(self.distance)

    @property
    def inside(self) -> Tensor:
        """Coverage [n, 64, 64]: 1 inside the thing, 0 outside, antialiased."""
        return torch.sigmoid(-2.5 * self.distance / self.pixel)

    def line(self, width: float) -> Tensor:
        """A soft line [n, 64, 64] along the outline, about `width` pixels to each side."""
        return torch.exp(-((self.distance / (self.pixel * width)) ** 2))


def _relief(scene: Scene, g: torch.Generator) -> Tensor:
    """Light on the thing [n, 64, 64], 1 = facing it; its height grows away from the outline."""
    n = len(scene)
    height = torch.sqrt((-scene.distance).clamp(0, 0.35) + 1e-4)
    slope_x = 2.2 * F.pad(height[:, :, 2:] - height[:, :, :-2], (1, 1))
    slope_y = 2.2 * F.pad(height[:, 2:] - height[:, :-2], (0, 0, 1, 1))
    angle = 2 * math.pi * uniform(g, n, 1, 1)
    facing = 1 - (slope_x * torch.cos(angle) + slope_y * torch.sin(angle))
    return facing / torch.sqrt(1 + slope_x**2 + slope_y**2)


def photo(scene: Scene, g: torch.Generator) -> Tensor:
    """A shaded thing with a shadow on its background, sometimes a small distractor, uneven exposure."""
    n, inside = len(scene), scene.inside
    background = paint_backgrounds(scene.backgrounds, g)
    shadow = 0.45 * blur(torch.roll(inside, (3, 2), (1, 2))[:, None], 2)[:, 0]
    light = _relief(scene, g)
    gloss = 0.15 + (scene.patterns == 4).float().view(n, 1, 1)
    material = paint_patterns(scene.patterns, scene.coords, scene.colors, g)
    thing = material * (0.35 + 0.65 * light.clamp(0, 1.5))[:, None]
    thing = (thing + (((light - 0.85).clamp(min=0) * 6) ** 2 * gloss)[:, None]).clamp(0, 1)
    image = blend(background * (1 - shadow * (1 - inside))[:, None], thing, inside)
    place = 0.9 * (2 * uniform(g, n, 2, 1, 1) - 1)
    radius = 0.1 + 0.08 * uniform(g, n, 1, 1)
    blob = torch.sigmoid(40 * (radius - (GRID[None] - place).norm(dim=1)))
    blob = blob * (uniform(g, n, 1, 1) < 0.35 * scene.clutter) * (1 - inside)
    blob_color = 0.8 * PALETTE[torch.randint(len(PALETTE), (n,), generator=g)].view(n, 3, 1, 1)
    vignette = 1 - 0.25 * uniform(g, n, 1, 1) * (GRID**2).sum(dim=0)
    exposure = 0.75 + 0.45 * uniform(g, n, 1, 1)
    return (blend(image, blob_color, blob) * (vignette * exposure)[:, None]).clamp(0, 1)


def painting(scene: Scene, g: torch.Generator) -> Tensor:
    """Flat colours in few steps with a dark outline, like a cartoon."""
    background = paint_backgrounds(scene.backgrounds, g)
    background = 0.5 * (background + background.mean(dim=(2, 3), keepdim=True))
    material = paint_patterns(scene.patterns, scene.coords, scene.colors, g)
    flat = torch.round(blend(background, material, scene.inside) * 5) / 5
    return flat * (1 - 0.8 * scene.line(1.1))[:, None]


def sketch(scene: Scene, g: torch.Generator) -> Tensor:
    """A broken, wavering pencil outline on paper, dark things hatched."""
    n = len(scene)
    paper = 0.88 + 0.1 * smooth_noise(g, n, 24)
    waves = torch.sin(26 * GRID.sum(dim=0) + 3 * smooth_noise(g, n, 6))
    dark = (scene.colors.mean(dim=1) < 0.6).view(n, 1, 1)
    hatching = 0.45 * (waves > 0.75) * dark * scene.inside
    wavering = scene.distance + 0.04 * (smooth_noise(g, n, 10) - 0.5)
    pencil = 0.75 * torch.exp(-((wavering / (0.9 * scene.pixel)) ** 2)) * (smooth_noise(g, n, 10) > 0.25)
    return (paper - pencil - hatching)[:, None].expand(-1, 3, -1, -1)


def silhouette(scene: Scene, g: torch.Generator) -> Tensor:
    """A black thing before a pale even light."""
    background = PALETTE[torch.randint(len(PALETTE), (len(scene),), generator=g)]
    pale = (0.5 + 0.5 * background).view(-1, 3, 1, 1)
    return blend(pale, torch.tensor(0.05), scene.inside)


def neon(scene: Scene, g: torch.Generator) -> Tensor:
    """A glowing coloured outline in the dark."""
    glow = scene.line(1.1).sqrt() + 0.25 * scene.line(4.0)
    return 0.04 + glow[:, None] * (0.3 + 0.7 * scene.colors).view(-1, 3, 1, 1)


def inverted(scene: Scene, g: torch.Generator) -> Tensor:
    """The negative of a photo."""
    return 1 - photo(scene, g)


def textured(scene: Scene, g: torch.Generator) -> Tensor:
    """A photo whose thing and background are covered with two conflicting stripe textures."""
    n = len(scene)
    frequency, angle = 22 + 10 * uniform(g, n, 1, 1), 2 * math.pi * uniform(g, n, 1, 1)
    turned = angle + 1.2 + 0.6 * uniform(g, n, 1, 1)
    waves = [
        torch.sin(f * (GRID[0] * torch.cos(a) + GRID[1] * torch.sin(a)) + 2 * smooth_noise(g, n, 4))
        for f, a in ((frequency, angle), (1.2 * frequency, turned))
    ]
    stripes = 0.5 + 0.5 * torch.lerp(waves[0], waves[1], scene.inside)
    light = PALETTE[torch.randint(len(PALETTE), (n,), generator=g)].view(n, 3, 1, 1)
    texture = blend(0.8 * (1 - 0.7 * light), light, stripes)
    return torch.lerp(photo(scene, g), texture, TEXTURE_STRENGTH)


def noisy(scene: Scene, g: torch.Generator) -> Tensor:
    """A blurred, pale photo under strong sensor noise."""
    image = 0.5 + 0.75 * (blur(photo(scene, g)) - 0.5)
    return image + NOISE_STRENGTH * torch.randn(image.shape, generator=g)


TEXTURE_STRENGTH = 0.35  # share of the conflicting texture in "textured"
NOISE_STRENGTH = 0.12  # standard deviation of the noise in "noisy", in units of the full range

Painter = Callable[[Scene, torch.Generator], Tensor]
PAINTERS: dict[str, Painter] = {
    "photo": photo,
    "painting": painting,
    "sketch": sketch,
    "silhouette": silhouette,
    "neon": neon,
    "inverted": inverted,
    "textured": textured,
    "noisy": noisy,
}
