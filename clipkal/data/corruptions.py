"""Corrupted copies of an image set, at severities 1 to 5: the shifts of ImageNet-C's kind, made on the fly.

After the families of Hendrycks and Dietterich (2019, arXiv 1903.12261), not their code: numbers measured here
are not comparable with published ImageNet-C ones. The strengths are chosen for 224 pixels; lengths in pixels
scale with the image's short side s as s/224, and noise as √(s/224), since a small image averages less of it
away.

Each image has its own random stream, seeded by its id, the kind and the severity: the result does not depend
on the batch, the order, or what else is corrupted. In a config a set is called `kind@severity`, e.g.
`gaussian_noise@3`.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from clipkal import files
from clipkal.data.names import choose
from clipkal.data.sets import Decoder, ImageSet
from clipkal.data.threads import one_thread
from clipkal.errors import DataError

VERSION = "1"  # part of every digest; raise it when a corruption changes
_REFERENCE = 224

Corruption = Callable[[Tensor, float, Generator], Tensor]
STRENGTHS: dict[str, tuple[float, ...]] = {}
_APPLY: dict[str, Corruption] = {}


def _kind(*strengths: float) -> Callable[[Corruption], Corruption]:
    """Registers a corruption of float images [3, H, W] in 0..1 and its strength at each severity."""

    def register(apply: Corruption) -> Corruption:
        name = apply.__name__.lstrip("_")
        STRENGTHS[name], _APPLY[name] = strengths, apply
        return apply

    return register


def _scale(x: Tensor) -> float:
    """The short side over 224."""
    return min(x.shape[-2:]) / _REFERENCE


def _noise(x: Tensor, g: Generator) -> Tensor:
    return torch.randn(x.shape, generator=g)


@_kind(0.08, 0.12, 0.18, 0.26, 0.38)
def _gaussian_noise(x: Tensor, std: float, g: Generator) -> Tensor:
    return x + std * math.sqrt(_scale(x)) * _noise(x, g)


@_kind(60, 25, 12, 5, 3)
def _shot_noise(x: Tensor, photons: float, g: Generator) -> Tensor:
    """Poisson noise; `photons` is the count that white gives."""
    count = photons / _scale(x)
    return torch.poisson(x.clamp(0, 1) * count, generator=g) / count


@_kind(0.03, 0.06, 0.09, 0.17, 0.27)
def _impulse_noise(x: Tensor, share: float, g: Generator) -> Tensor:
    """Salt and pepper on a share of the values."""
    u = torch.rand(x.shape, generator=g)
    share *= math.sqrt(_scale(x))
    return torch.where(u < share / 2, 0.0, torch.where(u > 1 - share / 2, 1.0, x))


@_kind(1, 2, 3, 4, 6)
def _gaussian_blur(x: Tensor, sigma: float, g: Generator) -> Tensor:
    sigma = max(sigma * _scale(x), 0.4)  # less than this is no blur
    place = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1.0)
    line = torch.exp(-((place / sigma) ** 2) / 2)
    return _convolve(_convolve(x, line[None, :]), line[:, None])


@_kind(3, 4, 6, 8, 10)
def _defocus_blur(x: Tensor, radius: float, g: Generator) -> Tensor:
    """Convolution with a disc."""
    radius *= _scale(x)
    reach = max(1, math.ceil(radius))
    y, z = torch.meshgrid(*2 * [torch.arange(-reach, reach + 1.0)], indexing="ij")
    return _convolve(x, (radius + 0.5 - torch.sqrt(y**2 + z**2)).clamp(0, 1))


@_kind(10, 15, 20, 28, 36)
def _motion_blur(x: Tensor, length: float, g: Generator) -> Tensor:
    """Convolution with a line of `length` pixels in a random direction."""
    length *= _scale(x)
    angle = math.pi * float(torch.rand((), generator=g))
    reach = max(1, math.ceil(length / 2))
    y, z = torch.meshgrid(*2 * [torch.arange(-reach, reach + 1.0)], indexing="ij")
    across = (y * math.cos(angle) - z * math.sin(angle)).abs()
    along = (y * math.sin(angle) + z * math.cos(angle)).abs()
    return _convolve(x, (1 - across).clamp(0, 1) * (length / 2 + 0.5 - along).clamp(0, 1))


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel with a kernel [odd, odd], normalised to sum to one; the border is repeated outward."""
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(x[:, None], (right, right, down, down), mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


@_kind(0.4, 0.3, 0.2, 0.1, 0.05)
def _contrast(x: Tensor, factor: float, g: Generator) -> Tensor:
    mean = x.mean(dim=(1, 2), keepdim=True)
    return mean + factor * (x - mean)


@_kind(0.1, 0.2, 0.3, 0.4, 0.5)
def _brightness(x: Tensor, more: float, g: Generator) -> Tensor:
    """Raises the HSV value: the brightest channel gains `more`, the others in proportion."""
    value = x.amax(dim=0, keepdim=True)
    return torch.where(value > 0, x * (value + more).clamp(max=1) / value.clamp(min=1e-6), more)


@_kind(0.15, 0.3, 0.45, 0.6, 0.75)
def _darkness(x: Tensor, less: float, g: Generator) -> Tensor:
    return x * (1 - less)


@_kind(0.4, 0.1, 2, 4, 8)
def _saturate(x: Tensor, factor: float, g: Generator) -> Tensor:
    """Greyer at the first two severities, more colourful at the others."""
    grey = (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return grey + factor * (x - grey)


@_kind(25, 18, 15, 10, 7)
def _jpeg(x: Tensor, quality: float, g: Generator) -> Tensor:
    buffer = io.BytesIO()
    _to_image(x).save(buffer, format="JPEG", quality=int(quality))
    return _to_tensor(Image.open(buffer))


@_kind(0.6, 0.5, 0.4, 0.3, 0.25)
def _pixelate(x: Tensor, factor: float, g: Generator) -> Tensor:
    height, width = x.shape[-2:]
    small = (max(2, round(height * factor)), max(2, round(width * factor)))
    coarse = F.interpolate(x[None], size=small, mode="area")
    return F.interpolate(coarse, size=(height, width), mode="nearest")[0]


@_kind(1, 2, 3, 4.5, 6)
def _elastic(x: Tensor, pixels: float, g: Generator) -> Tensor:
    """Moves every place by a smooth random field whose standard deviation is `pixels`."""
    height, width = x.shape[-2:]
    field = F.interpolate(torch.randn(1, 2, 8, 8, generator=g), size=(height, width), mode="bicubic")[0]
    field = field / field.std() * pixels * _scale(x)
    y, z = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([2 * (z + field[0]) / width - 1, 2 * (y + field[1]) / height - 1], dim=-1)
    return F.grid_sample(x[None], grid[None], padding_mode="reflection", align_corners=False)[0]


@_kind(0.35, 0.45, 0.55, 0.65, 0.75)
def _fog(x: Tensor, density: float, g: Generator) -> Tensor:
    """A bright cloud of several grain sizes over the image."""
    height, width = x.shape[-2:]
    octaves = [torch.rand(1, 1, 2**k, 2**k, generator=g) for k in range(2, 6)]
    layers = [F.interpolate(o, size=(height, width), mode="bicubic")[0] / 2**k for k, o in enumerate(octaves)]
    cloud = torch.stack(layers).sum(dim=0)
    cloud = (cloud - cloud.amin()) / (cloud.amax() - cloud.amin() + 1e-6)
    veil = density * (0.6 + 0.4 * cloud)
    return x * (1 - veil) + veil


KINDS: tuple[str, ...] = tuple(_APPLY)


def parse(name: str) -> tuple[str, int]:
    """Kind and severity of a name `kind@severity`.

    Raises:
        DataError: the kind is unknown, or the severity is not 1..5.
    """
    kind, _, severity = name.partition("@")
    choose("dataset.ood: corruption", kind, KINDS)
    if severity not in {"1", "2", "3", "4", "5"}:
        raise DataError(f"dataset.ood: {name!r}: the severity after @ must be 1, 2, 3, 4 or 5")
    return kind, int(severity)


def corrupt(image: Image.Image, kind: str, severity: int, identity: str) -> Image.Image:
    """One corrupted image; `identity` seeds its random stream."""
    seed = hashlib.sha256(f"{identity}\0{kind}\0{severity}".encode()).digest()
    generator = Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1)
    with one_thread():
        return _to_image(_APPLY[kind](_to_tensor(image), STRENGTHS[kind][severity - 1], generator))


def _to_tensor(image: Image.Image) -> Tensor:
    """Float [3, H, W] in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _to_image(x: Tensor) -> Image.Image:
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True)
class CorruptedDecoder:
    """Position -> corrupted image."""

    decode: Decoder
    ids: list[str]
    kind: str
    severity: int

    def __call__(self, i: int) -> Image.Image:
        return corrupt(self.decode(i), self.kind, self.severity, self.ids[i])


def corrupted(clean: ImageSet, kind: str, severity: int) -> ImageSet:
    """The corrupted copy of a set, called `kind@severity`; ids and labels stay.

    Raises:
        DataError: as `parse`.
    """
    name = f"{kind}@{severity}"
    parse(name)
    digest = files.digest("corruption", VERSION, name, clean.digest)
    return ImageSet(
        name, clean.ids, clean.labels, CorruptedDecoder(clean.decode, clean.ids, kind, severity), digest
    )
