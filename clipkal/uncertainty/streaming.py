"""All views of several predictives of the same sets, from one pass over the images and one over the draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from clipkal.uncertainty.chunk import Chunk, Need, View
from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictive import Accumulator, Predictive
from clipkal.uncertainty.reader import Reader


@dataclass(frozen=True)
class Images:
    """Inputs of N images (whatever `inputs[a:b]` gives) and the views wanted of them."""

    inputs: Tensor
    count: int
    views: Sequence[View]


class Watcher(Protocol):
    """Sees what the reader knows of every image, as it is streamed."""

    needs: tuple[Need, ...]

    def see(self, name: str, rows: slice, chunk: Chunk) -> Chunk:
        """Takes some images of the set `name`, each once, and may add what the predictives can use."""
        ...


def predict(
    reader: Reader,
    predictives: Mapping[str, Predictive],
    sets: Mapping[str, Images],
    watcher: Watcher | None = None,
) -> dict[str, dict[View, Prediction]]:
    """Every view of every set; raises as the reader and the predictives do.

    Draws are as many for all predictives as the one asks for that asks for most. A watcher sees every chunk first.
    """
    streams = {name: _Stream(images, predictives) for name, images in sets.items()}
    for name, stream in streams.items():
        needs = {need for one in stream.predictives.values() for need in one.needs}
        needs |= set(() if watcher is None else watcher.needs)
        for rows, chunk in reader.chunks(stream.images.inputs, stream.images.count, needs, name):
            stream.add(rows, chunk if watcher is None else watcher.see(name, rows, chunk))
    sampled = {name: one for name, one in streams.items() if one.samples}
    if sampled:
        inputs = {name: (one.images.inputs, one.images.count) for name, one in sampled.items()}
        most = max(one.samples for one in sampled.values())
        for name, rows, draws in reader.draws(inputs, most, next(iter(sampled.values())).classes):
            sampled[name].add_draws(rows, draws)
    return {name: one.predictions() for name, one in streams.items()}


class _Stream:
    """The accumulators of one set, one a view."""

    def __init__(self, images: Images, predictives: Mapping[str, Predictive]) -> None:
        self.images = images
        self.views = list(dict.fromkeys(images.views))
        self.predictives = {view.predictive: predictives[view.predictive] for view in self.views}
        self.samples = max((p.samples for p in self.predictives.values() if "draws" in p.needs), default=0)
        self.classes = 0
        self.accumulators: dict[View, Accumulator] = {}
        self.novelties: dict[str, dict[int, Tensor]] = {name: {} for name in self.predictives}

    def add(self, rows: slice, chunk: Chunk) -> None:
        if not self.accumulators:
            self._begin(chunk.logits.shape[1])
        for name, predictive in self.predictives.items():
            known = chunk
            if chunk.features is not None and (novelty := predictive.novelty(chunk)) is not None:
                self.novelties[name][rows.start] = novelty
                known = replace(chunk, novelty=novelty)
            for view, accumulator in self._of(name):
                accumulator.add(rows, view.of_chunk(known))

    def add_draws(self, rows: slice, draws: Tensor) -> None:
        for name, predictive in self.predictives.items():
            if "draws" in predictive.needs:
                for view, accumulator in self._of(name):
                    accumulator.add_draws(rows, view.of(draws))

    def predictions(self) -> dict[View, Prediction]:
        found = {view: accumulator.prediction() for view, accumulator in self.accumulators.items()}
        for name, parts in self.novelties.items():
            if parts:
                novelty = torch.cat([parts[start] for start in sorted(parts)])
                found |= {view: replace(found[view], novelty=novelty) for view, _ in self._of(name)}
        return found

    def _begin(self, classes: int) -> None:
        self.classes = classes
        for view in self.views:
            width = classes if view.classes is None else len(view.classes)
            self.accumulators[view] = self.predictives[view.predictive].begin(self.images.count, width)

    def _of(self, name: str) -> list[tuple[View, Accumulator]]:
        return [(view, one) for view, one in self.accumulators.items() if view.predictive == name]
