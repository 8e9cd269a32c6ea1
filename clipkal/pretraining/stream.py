"""What the model sees in pretraining: batch number `step` is a pure function of the seed and the step."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.utils.data import Dataset

from clipkal.data.world.captions import caption
from clipkal.data.world.render import render
from clipkal.data.world.shapes import CLASSES, PRETRAINING_CLASSES
from clipkal.data.world.styles import PRETRAINING_STYLES, STYLES
from clipkal.data.world.surfaces import blur

# Shares of the styles. The first part of the run shows mostly bare outlines, in milder poses: from photos
# alone the model learns colours and backgrounds first and finds the shapes late or never.
EASY_SHARES = {"photo": 0.20, "painting": 0.20, "sketch": 0.08, "silhouette": 0.30, "neon": 0.22}
FULL_SHARES = {"photo": 0.55, "painting": 0.14, "sketch": 0.08, "silhouette": 0.11, "neon": 0.12}


class Batch(NamedTuple):
    """One training batch of n image-caption pairs with u different captions."""

    images: Tensor  # uint8 [n, 3, 64, 64]
    tokens: Tensor  # long [u, context]: the different captions
    pairs: Tensor  # long [n]: each image's place in `tokens`
    nouns: Tensor  # long [n]: place in PRETRAINING_CLASSES of the class that the caption names, else -1


@dataclass(frozen=True)
class Curriculum:
    """The length of a run and its curriculum."""

    samples: int
    batch_size: int = 128
    seed: int = 0
    easy: float = 0.35  # share of the run with the easy curriculum

    @property
    def steps(self) -> int:
        """How many batches the run has."""
        return max(1, self.samples // self.batch_size)


def soil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mild changes of contrast, brightness, sharpness and noise of uint8 images [n, 3, H, W].

    All much weaker than the held-out "noisy" style; they keep the model from relying on exact pixels.
    """
    n = len(images)
    draw = torch.rand(n, 5, 1, 1, 1, generator=generator).unbind(dim=1)
    x = images.float() / 255
    x = torch.where(draw[0] < 0.25, blur(x), x)
    x = 0.5 + (x - 0.5) * (0.65 + 0.5 * draw[1]) + 0.2 * (draw[2] - 0.5)
    noise = torch.randn(x.shape, generator=generator)
    x = x + 0.06 * draw[3] * (draw[4] < 0.5) * noise
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


class PretrainingStream(Dataset[Batch]):
    """The batches of a run, by step."""

    def __init__(self, plan: Curriculum, tokenizer: SimpleTokenizer) -> None:
        self.plan = plan
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        plan = self.plan
        key = f"clipkal-pretraining/{plan.seed}/{step}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
        rng = random.Random(seed)
        easy = step < plan.easy * plan.steps
        shares = EASY_SHARES if easy else FULL_SHARES
        names = rng.choices(PRETRAINING_CLASSES, k=plan.batch_size)
        styles = rng.choices(
            PRETRAINING_STYLES, weights=[shares[s] for s in PRETRAINING_STYLES], k=plan.batch_size
        )
        class_ids = torch.tensor([CLASSES.index(name) for name in names])
        style_ids = torch.tensor([STYLES.index(style) for style in styles])
        images, attributes = render(class_ids, style_ids, seed, difficulty=0.5 if easy else 1.0)
        captions = [
            caption(c, s, attributes, i, rng)
            for i, (c, s) in enumerate(zip(class_ids.tolist(), style_ids.tolist(), strict=True))
        ]
        places = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        nouns = [
            PRETRAINING_CLASSES.index(name) if name in text.split() else -1
            for name, text in zip(names, captions, strict=True)
        ]
        return Batch(
            images=soil(images, torch.Generator().manual_seed(seed ^ 1)),
            tokens=self.tokenizer(list(places)),
            pairs=torch.tensor([places[text] for text in captions]),
            nouns=torch.tensor(nouns),
        )
