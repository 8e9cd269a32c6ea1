"""A whole few-shot task as preprocessed images, for adapters inside the towers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.backbones.cache import CacheDir
from clipkal.backbones.features import Problem, batches, readable_images
from clipkal.backbones.openclip import PRECOMPUTED, Backbone
from clipkal.backbones.prompts import text_features
from clipkal.backbones.task import Skipped, check_transfer, seen_through
from clipkal.data.sets import ImageSet
from clipkal.data.task import FewShotTask
from clipkal.errors import ConfigError, DataError

KEEP = 1 << 29
"""Bytes of preprocessed images that a set may hold in memory; a larger one is decoded anew each time it is used."""


class Pixels:
    """The images of a set as inputs of a model, decoded when asked: pixels[rows] is float32 [n, 3, H, W].

    rows: a slice or an int64 tensor. Raises DataError for an image that cannot be decoded.
    """

    def __init__(self, backbone: Backbone, image_set: ImageSet, workers: int):
        self.backbone, self.image_set, self.workers = backbone, image_set, workers

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        chosen = range(len(self))[rows] if isinstance(rows, slice) else rows
        parts = []
        for images, problems in batches(self.backbone, self.image_set.subset(chosen), self.workers):
            if problems:
                raise DataError(problems[0][1])
            assert images is not None
            parts.append(images)
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class PixelSet:
    """A labelled set as model inputs; `inputs` takes rows like those of a `FeatureSet`.

    inputs: float32 [N, 3, H, W], or `Pixels`. digest: of the images and the transform. The rest as in `ImageSet`.
    """

    name: str
    ids: list[str]
    labels: Tensor
    inputs: Tensor | Pixels
    digest: str

    def __len__(self) -> int:
        return len(self.ids)


def pixelise(
    backbone: Backbone | None,
    task: FewShotTask,
    cache_dir: CacheDir = None,
    workers: int = 0,
    progress: bool = True,
    on_bad_image: str = "error",
) -> tuple[FewShotTask, Skipped]:
    """The same task with `PixelSet`s in the place of images, and the class features of its prompts.

    Arguments, result and errors as `featurise`; the cache holds class features only.
    """
    if backbone is None or not isinstance(task.shots, ImageSet):
        raise ConfigError(
            f"adapter=lora learns from images, but dataset {task.name} or backbone={PRECOMPUTED} has features only: "
            "type adapter=linear, or a dataset of images"
        )
    check_transfer(task)
    through = lambda one, on_bad: _pixels(backbone, one, workers, progress, on_bad)
    text = lambda prompts: text_features(backbone, prompts, cache_dir, progress)
    return seen_through(task, through, text, backbone.logit_scale, on_bad_image)


def _pixels(
    backbone: Backbone, image_set: ImageSet, workers: int, progress: bool, on_bad: str
) -> tuple[PixelSet, list[str]]:
    """The set as pixels, in memory where they fit, and the ids of the images left out."""
    first = next(iter(batches(backbone, image_set.subset([0]), 0)))[0]
    small = first is not None and len(image_set) * first.nbytes <= KEEP
    if not small and on_bad != "skip":
        return _set(backbone, image_set, Pixels(backbone, image_set, workers)), []
    skipped: list[Problem] = []
    readable = readable_images(backbone, image_set, workers, progress, on_bad != "skip", skipped, "images")
    kept = [images for images in readable if small]
    bad = {place for place, _ in skipped}
    good = image_set.subset([i for i in range(len(image_set)) if i not in bad]) if bad else image_set
    inputs = torch.cat(kept) if small else Pixels(backbone, good, workers)
    return _set(backbone, good, inputs), [image_set.ids[i] for i, _ in skipped]


def _set(backbone: Backbone, image_set: ImageSet, inputs: Tensor | Pixels) -> PixelSet:
    return PixelSet(
        image_set.name, image_set.ids, image_set.labels, inputs, image_set.digest + backbone.transform
    )
