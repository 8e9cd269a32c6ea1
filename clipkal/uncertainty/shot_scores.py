"""Scores of single images that no predictive makes: the energy of the logits, and distances to the shots."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from clipkal.adapters import Adapter
from clipkal.data.sets import LabelledSet
from clipkal.metrics import Gaussians, NearestShot, energy
from clipkal.uncertainty.chunk import Chunk, Need
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.reader import Reader

SOURCES = {
    "energy": "plugin",
    "nearest_shot": "features",
    "mahalanobis": "features",
    "relative_mahalanobis": "features",
}
"""What each score is made of: the learnt model's logits, or features of the frozen backbone."""


class ShotScores:
    """Looks at images as they are streamed, and keeps their scores; higher = less like the shots.

    Args:
        features: of the shots, by the frozen backbone (n, d); None: the energy alone.
        labels: of the shots (n,).

    Attributes:
        needs: what must be in the chunks that it sees.
    """

    def __init__(self, features: Tensor | None = None, labels: Tensor | None = None) -> None:
        self.shots = None if features is None else NearestShot(features)
        self.gaussians = None if features is None or labels is None else Gaussians(features, labels)
        self.needs: tuple[Need, ...] = () if features is None else ("features",)
        self._seen: dict[str, dict[int, dict[str, Tensor]]] = {}

    @classmethod
    def of(
        cls, reader: Reader, predictives: Collection[Predictive], shots: LabelledSet | None
    ) -> "ShotScores":
        """With distances where features cost nothing: the adapter learns from them, or a predictive needs them anyway.

        For an adapter inside the towers they would cost a second pass through the image tower.
        """
        cheap = isinstance(reader.model, Adapter) and reader.model.inputs == "features"
        if shots is None or not (cheap or any("features" in one.needs for one in predictives)):
            return cls()
        chunk = reader.whole(shots.inputs, len(shots.labels), ("features",), "shots")
        return cls(chunk.features, shots.labels.cpu())

    def see(self, name: str, rows: slice, chunk: Chunk) -> Chunk:
        """Takes images of the set `name`, in any order, each once, and adds their distance to the nearest shot."""
        found = {"energy": energy(chunk.logits)}
        if self.shots is not None and self.gaussians is not None and chunk.features is not None:
            found["nearest_shot"] = self.shots.distance(chunk.features)
            found |= self.gaussians.scores(chunk.features)
            chunk = replace(chunk, nearest=found["nearest_shot"])
        self._seen.setdefault(name, {})[rows.start] = found
        return chunk

    def scores(self, name: str) -> dict[str, Tensor]:
        """Of all images of a set that were seen, float64 (N,) each, in their order."""
        parts = [part for _, part in sorted(self._seen.get(name, {}).items())]
        return {score: torch.cat([part[score] for part in parts]) for score in parts[0]} if parts else {}
