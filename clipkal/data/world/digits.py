"""Digits as distance fields: the fonts that matplotlib bundles, and scikit-learn's handwritten digits.

The fonts are shown in pretraining. The 1,797 handwritten digits are real scans that no pretraining image
contains; they enter the world as soft distance fields, so that every style can draw them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FIELD = 48  # side of a distance field in pixels; it spans 1.25 times the square -1..1
_SPAN = 0.8
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)


def _glyph_field(font: ImageFont.FreeTypeFont, text: str) -> np.ndarray:
    """Signed distance [FIELD, FIELD] of one glyph, centred, filling two thirds of the field."""
    from scipy.ndimage import distance_transform_edt

    left, top, right, bottom = font.getbbox(text)
    width, height = right - left, bottom - top
    side = int(max(width, height) * 1.5)
    canvas = Image.new("L", (side, side), 0)
    ImageDraw.Draw(canvas).text(
        ((side - width) / 2 - left, (side - height) / 2 - top), text, font=font, fill=255
    )
    inside = np.asarray(canvas.resize((2 * FIELD, 2 * FIELD), Image.Resampling.BILINEAR)) > 127
    field = distance_transform_edt(~inside) - distance_transform_edt(inside)
    return field[::2, ::2] / (FIELD * _SPAN)


@cache
def font_fields() -> Tensor:
    """Distance fields of the ten digits in every font: [fonts, 10, FIELD, FIELD]."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), 96) for name in _FONTS]
    return torch.tensor(np.array([[_glyph_field(font, d) for d in "0123456789"] for font in fonts])).float()


@cache
def handwritten_fields() -> tuple[Tensor, Tensor]:
    """Soft distance fields [1797, FIELD, FIELD] of the handwritten digits, and their labels [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ink = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    ink = F.interpolate(F.pad(ink, (2, 2, 2, 2)), size=FIELD, mode="bicubic", align_corners=False)[:, 0]
    return (0.45 - ink) * 0.45, torch.tensor(data.target)


def digit_distance(
    p: Tensor, digits: Tensor, generator: torch.Generator, handwritten: tuple[float, float] | None = None
) -> Tensor:
    """Signed distance [n, H, W] of digits (long [n], 0..9) at coordinates `p` [n, 2, H, W].

    `handwritten` = (low, high) draws from that share of each digit's scans, e.g. (0, 0.5) the first half;
    None draws a font. The stroke is thickened or thinned a little at random.
    """
    n = len(digits)
    pick = torch.rand(n, generator=generator)
    weight = 0.09 * torch.rand(n, 1, 1, generator=generator) - 0.05
    if handwritten is None:
        bank = font_fields()
        source = bank[(pick * len(bank)).long(), digits]
    else:
        fields, labels = handwritten_fields()
        rows = []
        for digit, u in zip(digits.tolist(), pick.tolist(), strict=True):
            pool = (labels == digit).nonzero()[:, 0]
            low, high = int(len(pool) * handwritten[0]), int(len(pool) * handwritten[1])
            rows.append(pool[low + int(u * (high - low))])
        source = fields[torch.stack(rows)]
    grid = (p * _SPAN).clamp(-1, 1).permute(0, 2, 3, 1)
    return F.grid_sample(source[:, None], grid, padding_mode="border", align_corners=False)[:, 0] + weight
