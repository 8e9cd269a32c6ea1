"""The embedded image world as a dataset: 24 shapes, one style to learn from, the other styles as shifts.

By default ID is the style "photo" and OOD are the seven others; 32 train, 8 val and 25 test images per class.
Images are drawn when first asked for, a class at a time, and kept. Ids are "style/split/class/number".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipkal import files
from clipkal.data.names import choose, fill_templates, renamed
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.spec import DataSpec
from clipkal.data.threads import one_thread
from clipkal.errors import DataError

PER_CLASS = {"train": 32, "val": 8, "test": 25}


@dataclass(frozen=True)
class RenderedDecoder:
    """Position -> image, for a split with `per_class` images of each class, class after class."""

    class_names: list[str]
    style: str
    split: str
    per_class: int
    handwritten: bool = False
    # label -> uint8 [n, 3, 64, 64]
    _drawn: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, i: int) -> Image.Image:
        label, number = divmod(i, self.per_class)
        return Image.fromarray(self._of_class(label)[number].permute(1, 2, 0).contiguous().numpy())

    def _of_class(self, label: int) -> Tensor:
        if label not in self._drawn:
            from clipkal.data.world import render_split

            name = [self.class_names[label]]
            with one_thread():
                images, _ = render_split(
                    name, self.style, self.split, self.per_class, handwritten=self.handwritten
                )
            self._drawn[label] = images
        return self._drawn[label]


def load(spec: DataSpec) -> Dataset:
    """The dataset of the world's target classes.

    Raises:
        DataError: a style is unknown, or the config asks for folders, which this source does not read.
    """
    from clipkal.data.world import STYLES, TARGET_CLASSES, phrases

    if spec.elsewhere:
        raise DataError(
            f"dataset.ood: {', '.join(spec.elsewhere)}: the rendered world has styles, not folders"
        )
    own = choose("dataset.id_domain", spec.id_domain or "photo", STYLES)
    others = [style for style in STYLES if style != own]
    wanted = others if spec.domains is None else spec.domains
    keys = list(TARGET_CLASSES)
    names = renamed(keys, spec.class_names)
    ways = [phrases(key) if name == key else [name] for key, name in zip(keys, names, strict=True)]
    return Dataset(
        spec.name,
        names,
        fill_templates(spec.templates, ways),
        rendered_set(keys, own, "train"),
        rendered_set(keys, own, "val"),
        rendered_set(keys, own, "test"),
        {style: rendered_set(keys, choose("dataset.ood: style", style, others), "test") for style in wanted},
    )


def rendered_set(
    class_names: list[str], style: str, split: str, per_class: int | None = None, handwritten: bool = False
) -> ImageSet:
    """One style and split of the world; `handwritten` draws digits from scans (digits only)."""
    n = PER_CLASS[split] if per_class is None else per_class
    ids = [f"{style}/{split}/{name}/{i:04d}" for name in class_names for i in range(n)]
    labels = torch.arange(len(class_names)).repeat_interleave(n)
    kind = "handwritten" if handwritten else "drawn"
    digest = files.digest(world_digest(), kind, *ids)
    return ImageSet(
        f"{style}/{split}", ids, labels, RenderedDecoder(class_names, style, split, n, handwritten), digest
    )


@cache
def world_digest() -> str:
    """sha256 over the world's source: pixels change with it, and cached features with them."""
    sources = sorted((Path(__file__).parent / "world").glob("*.py"))
    parts = [part for source in sources for part in (source.name, source.read_bytes())]
    return files.digest(torch.__version__.split("+")[0], *parts)
