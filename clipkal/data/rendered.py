"""The embedded image world as a dataset: 24 shapes, one style to learn from, the other styles as shifts.

By default ID is the style "photo" and OOD are the seven others; 32 train, 8 val and 25 test images per class.
Images are drawn when first asked for, a class at a time, and kept. Ids are "style/split/class/number".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipkal import files
from clipkal.data.names import choose, fill_templates, renamed
from clipkal.data.sets import Dataset, ImageSet
from clipkal.data.shifts import shifted_sets
from clipkal.data.spec import DataSpec
from clipkal.data.threads import one_thread

PER_CLASS = {"train": 32, "val": 8, "test": 25}
_DRAWING = threading.Lock()  # images of one class are asked for by several threads at once


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
        with _DRAWING:
            if label not in self._drawn:
                self._drawn[label] = self._draw(label)
            return self._drawn[label]

    def _draw(self, label: int) -> Tensor:
        from clipkal.data.world import render_split

        name = [self.class_names[label]]
        with one_thread():
            return render_split(name, self.style, self.split, self.per_class, handwritten=self.handwritten)[0]


def load(spec: DataSpec) -> Dataset:
    """The dataset of the world's target classes.

    Raises:
        DataError: a style is unknown.
    """
    from clipkal.data.world import STYLES, TARGET_CLASSES

    own = choose("dataset.id_domain", spec.id_domain or "photo", STYLES)
    others = [style for style in STYLES if style != own]
    wanted = others if spec.domains is None else spec.domains
    keys = list(TARGET_CLASSES)
    ood = {style: rendered_set(keys, choose("dataset.ood: style", style, others), "test") for style in wanted}
    return spoken_dataset(spec, keys, {split: rendered_set(keys, own, split) for split in PER_CLASS}, ood)


def spoken_dataset(
    spec: DataSpec, keys: list[str], splits: Mapping[str, ImageSet], ood: Mapping[str, ImageSet]
) -> Dataset:
    """A dataset of train, val and test, with prompts in the world's own phrases where classes keep their names."""
    from clipkal.data.world import phrases

    names = renamed(keys, spec.class_names)
    ways = [phrases(key) if name == key else [name] for key, name in zip(keys, names, strict=True)]
    prompts = fill_templates(spec.templates, ways)
    train, val, test = splits["train"], splits["val"], splits["test"]
    return Dataset(spec.name, names, prompts, train, val, test, {**ood, **shifted_sets(spec, keys)})


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
