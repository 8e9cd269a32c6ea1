"""Images batch by batch: those that can be read, and in portions of one size."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from clipkal.backbones.features import batches
from clipkal.backbones.openclip import Backbone
from clipkal.errors import DataError
from clipkal.inference.images import Images


def readable(
    backbone: Backbone,
    images: Images,
    workers: int,
    strict: bool,
    skipped: list[tuple[str, str]],
    advance: Callable[[int], object],
) -> Iterator[tuple[Tensor, list[str]]]:
    """Pixels [B, 3, H, W] and the images' names; what cannot be read is added to `skipped`, or is a DataError where `strict`."""
    start = 0
    for pixels, problems in batches(backbone, images, workers):
        if problems and strict:
            raise DataError(
                f"{problems[0][1]}; mend or leave out the image, or skip those that cannot be read"
            )
        bad = {place for place, _ in problems}
        count = len(problems) + (0 if pixels is None else len(pixels))
        ids = [images.ids[i] for i in range(start, start + count) if i not in bad]
        skipped += [(images.ids[place], reason) for place, reason in problems]
        start += count
        if pixels is not None:
            yield pixels, ids
        advance(count)


def portions(seen: Iterable[tuple[Tensor, list[str]]], size: int) -> Iterator[tuple[Tensor, list[str]]]:
    """The same images in portions of `size`; the last may be smaller."""
    tensors: list[Tensor] = []
    names: list[str] = []
    for inputs, ids in seen:
        tensors.append(inputs)
        names += ids
        if len(names) < size:
            continue
        whole = torch.cat(tensors)
        while len(names) >= size:
            yield whole[:size], names[:size]
            whole, names = whole[size:], names[size:]
        tensors = [whole]
    if names:
        yield torch.cat(tensors), names
