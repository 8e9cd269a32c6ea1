"""What the model can do without any example: zero-shot accuracy by style and group of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkal.data.world.captions import TEMPLATES
from clipkal.data.world.render import render_split
from clipkal.data.world.shapes import DIGITS, SEEN, TARGET_CLASSES, UNSEEN, phrases
from clipkal.data.world.styles import STYLES
from clipkal.pretraining.model import MEAN, STD

GROUPS: dict[str, tuple[str, ...]] = {
    "seen": SEEN,
    "unseen": UNSEEN,
    "target": TARGET_CLASSES,
    "digits": DIGITS,
    "handwritten": DIGITS,
}


@torch.no_grad()
def text_head(
    model: open_clip.CLIP, tokenizer: Callable[[list[str]], Tensor], class_names: Sequence[str]
) -> Tensor:
    """Unit text features [classes, d], each the mean over all templates and phrases of its class."""
    rows = []
    for name in class_names:
        prompts = [template.format(phrase) for template in TEMPLATES for phrase in phrases(name)]
        rows.append(F.normalize(model.encode_text(tokenizer(prompts), normalize=True).mean(dim=0), dim=0))
    return torch.stack(rows)


@torch.no_grad()
def image_features(model: open_clip.CLIP, images: Tensor, batch_size: int = 128) -> Tensor:
    """Unit features [n, d] of uint8 images [n, 3, 64, 64]."""
    batches = ((part.float() / 255 - MEAN) / STD for part in images.split(batch_size))
    return torch.cat([model.encode_image(batch, normalize=True) for batch in batches])


def zero_shot(
    model: open_clip.CLIP,
    tokenizer: Callable[[list[str]], Tensor],
    *,
    per_class: int = 20,
    styles: Sequence[str] = STYLES,
) -> dict[str, dict[str, float]]:
    """Accuracy in percent by group and style, each group among its own classes, and its chance level."""
    model.eval()
    table: dict[str, dict[str, float]] = {}
    for group, names in GROUPS.items():
        head = text_head(model, tokenizer, names)
        table[group] = {"classes": len(names), "chance": round(100 / len(names), 1)}
        for style in styles:
            images, labels = render_split(names, style, "test", per_class, handwritten=group == "handwritten")
            guess = (image_features(model, images) @ head.T).argmax(dim=1)
            table[group][style] = round(100 * (guess == labels).float().mean().item(), 1)
    return table
