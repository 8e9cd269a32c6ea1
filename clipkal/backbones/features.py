"""Images through the frozen visual tower: one unit-norm feature each, computed once and cached."""

import copy
import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal import files
from clipkal.backbones.cache import CacheDir, Entry, Header, load_or_compute
from clipkal.backbones.openclip import DTYPES, Backbone
from clipkal.backbones.progress import progress_bar
from clipkal.backbones.transform import in_place
from clipkal.data.sets import FeatureSet, ImageSet
from clipkal.data.threads import in_threads
from clipkal.errors import BackboneError, ConfigError, DataError

log = logging.getLogger(__name__)
CHUNK = 8  # images that a thread decodes at a time
Problem = tuple[int, str]  # place in the set, what is wrong
Batch = tuple[Tensor | None, list[Problem]]  # images [n, 3, H, W], and those of the batch that cannot be read


def image_features(
    backbone: Backbone,
    image_set: ImageSet,
    cache_dir: CacheDir = None,
    workers: int = 0,
    progress: bool = True,
    on_bad_image: str = "error",
) -> tuple[FeatureSet, list[str]]:
    """The set seen through the backbone.

    Args:
        backbone: see `load_backbone`.
        image_set: N images.
        cache_dir: feature cache; None = `$CLIPKAL_CACHE` or `~/.cache/clipkal`; False or "off" = no cache.
        workers: threads that decode while the model encodes; 0 = as many as torch has.
        progress: a bar on terminals for work of more than two seconds.
        on_bad_image: "error" or "skip", for images that cannot be decoded.

    Returns:
        features float32 [N - skipped, d] with unit rows, and the ids of the images that were skipped.

    Raises:
        DataError: an image cannot be decoded and `on_bad_image` is "error", or no image is left.
        BackboneError: a feature is not finite (fp16 overflows in some models).
    """
    if on_bad_image not in ("error", "skip"):
        raise ConfigError(f"data.on_bad_image={on_bad_image}: choose error or skip")
    if workers < 0:
        raise ConfigError(f"data.workers={workers}: give a number of threads, or 0 for as many as torch has")
    strict = on_bad_image == "error"
    entry = load_or_compute(
        cache_dir,
        _header(backbone, image_set),
        compute=lambda: _encode(backbone, image_set, workers, progress, strict),
        accept=lambda found: all(not strict and _unreadable(image_set, i) for i in found["skipped"].tolist()),
    )
    return _feature_set(image_set, entry)


def _header(backbone: Backbone, image_set: ImageSet) -> Header:
    """Everything that defines the features of this set."""
    return {
        "kind": "images",
        **backbone.identity,
        "precision": backbone.precision,
        "transform": backbone.transform,
        "set": image_set.digest,
        "ids": files.digest(*image_set.ids),
        "labels": files.digest(image_set.labels.numpy().tobytes()),
    }


def _feature_set(image_set: ImageSet, entry: Entry) -> tuple[FeatureSet, list[str]]:
    bad = entry["skipped"].tolist()
    if not bad:
        return FeatureSet(image_set.name, image_set.ids, image_set.labels, entry["features"]), []
    dropped = set(bad)
    kept = [i for i in range(len(image_set)) if i not in dropped]
    ids = [image_set.ids[i] for i in kept]
    seen = FeatureSet(image_set.name, ids, image_set.labels[kept], entry["features"])
    return seen, [image_set.ids[i] for i in bad]


def _unreadable(image_set: ImageSet, i: int) -> bool:
    try:
        image_set.decode(i)
    except DataError:
        return True
    return False


def _encode(backbone: Backbone, image_set: ImageSet, workers: int, progress: bool, strict: bool) -> Entry:
    """features float32 [N - skipped, d] in the set's order and the places of skipped images, int64."""
    model, precision = reduced_precision(backbone.model, backbone.precision), backbone.precision
    skipped: list[Problem] = []
    readable = readable_images(backbone, image_set, workers, progress, strict, skipped, "features")
    rows = [encode(model, images.to(backbone.device, non_blocking=True)).cpu() for images in readable]
    features = torch.cat(rows)
    if not bool(features.isfinite().all()):
        raise BackboneError(
            f"{backbone.name} gives features that are not finite for {image_set.name} in {precision}; type "
            "backbone.precision=" + ("bf16 or fp32" if precision == "fp16" else "fp32, or check the weights")
        )
    return {"features": features, "skipped": torch.tensor([place for place, _ in skipped], dtype=torch.int64)}


def readable_images(
    backbone: Backbone,
    image_set: ImageSet,
    workers: int,
    progress: bool,
    strict: bool,
    skipped: list[Problem],
    what: str,
) -> Iterator[Tensor]:
    """The set's images, preprocessed, in batches [B, 3, H, W]; those that cannot be read are added to `skipped`.

    what: is made of them, for the progress bar. Raises DataError for an image that cannot be read if `strict`, or if
    none can.
    """
    with progress_bar(f"{what} of {image_set.name}", len(image_set), progress) as advance:
        for images, problems in batches(backbone, image_set, workers):
            if problems and strict:
                raise DataError(problems[0][1])
            skipped += problems
            if images is not None:
                yield images
            advance(len(problems) + (0 if images is None else len(images)))
    if skipped:
        log.warning("%s: %d images skipped, the first: %s", image_set.name, len(skipped), skipped[0][1])
    if len(skipped) == len(image_set):
        raise DataError(f"{image_set.name}: not one of its {len(image_set)} images can be used")


@torch.no_grad()
def encode(model: nn.Module, images: Tensor) -> Tensor:
    """Images [B, 3, H, W] to float32 [B, d] with unit rows, in the dtype of the visual tower.

    `no_grad` rather than `inference_mode`: the features go on into training, which inference tensors cannot.
    """
    tower: Any = model
    dtype = next(tower.visual.parameters()).dtype
    return F.normalize(tower.encode_image(images.to(dtype)).float(), dim=-1)


def reduced_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model with its visual tower cast to `precision`: itself for fp32, else a copy sharing the rest.

    A cast tower rather than autocast: autocast makes attention on a CPU six times slower than float32.
    """
    if DTYPES[precision] == torch.float32:
        return model
    shared = {id(child): child for name, child in model.named_children() if name != "visual"}
    clone: Any = copy.deepcopy(model, shared)
    clone.visual.to(DTYPES[precision])
    return clone


class Decodable(Protocol):
    """N images: an `ImageSet`, or the same without labels."""

    def __len__(self) -> int: ...

    @property
    def decode(self) -> Callable[[int], Image.Image]:
        """Place -> RGB image; DataError where it cannot be had."""
        ...


def batches(backbone: Backbone, image_set: Decodable, workers: int) -> Iterator[Batch]:
    """Preprocessed images [B, 3, H, W], decoded by threads up to two batches ahead of the model, however large the set."""
    size, threads = backbone.batch_size, workers or torch.get_num_threads()
    decoded = _Decoded(image_set, backbone.preprocess)
    chunks = (range(i, min(i + CHUNK, len(decoded))) for i in range(0, len(decoded), CHUNK))
    ahead = 2 * -(-size // CHUNK) + threads
    items = chain.from_iterable(
        in_threads(lambda places: [decoded[i] for i in places], chunks, threads, ahead)
    )
    for _ in range(0, len(decoded), size):
        yield _collate(list(islice(items, size)))


class _Decoded:
    """Place -> (place, image or None, what is wrong): a bad image is a value, so that others go on."""

    def __init__(self, image_set: Decodable, preprocess: Any):
        self.image_set, self.preprocess = image_set, in_place(preprocess)

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, i: int) -> tuple[int, Tensor | None, str]:
        try:
            return i, self.preprocess(self.image_set.decode(i)), ""
        except DataError as error:
            return i, None, str(error)


def _collate(items: list[tuple[int, Tensor | None, str]]) -> Batch:
    good = [image for _, image, _ in items if image is not None]
    images = torch.stack(good) if good else None
    return images, [(i, problem) for i, image, problem in items if image is None]
