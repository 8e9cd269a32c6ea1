"""What is known of a few images, and the views of it: which classes are scored, and at which temperature."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

Need = Literal["draws", "covariance", "zeroshot", "features"]
"""What a predictive can ask for beside the logits of the learnt model."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """B images, float64 on the CPU. What no predictive asked for is None.

    Attributes:
        logits: [B, C], of the model at its learnt parameters.
        covariance: [B, C, C], of the logits under the posterior.
        zeroshot: [B, C], the logits before anything was learnt.
        features: [B, d], unit rows of the frozen backbone.
        nearest: [B], distance of the features to those of the nearest shot, where a watcher has measured it.
        novelty: [B] in 0…1, what `Predictive.novelty` made of features or distance.
    """

    logits: Tensor
    covariance: Tensor | None = None
    zeroshot: Tensor | None = None
    features: Tensor | None = None
    nearest: Tensor | None = None
    novelty: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def known(self) -> dict[str, Tensor]:
        """The parts that are there, by name."""
        return {one.name: part for one in fields(self) if (part := getattr(self, one.name)) is not None}

    def rows(self, rows: slice) -> "Chunk":
        """Some of the images."""
        return Chunk(**{name: part[rows] for name, part in self.known().items()})

    @classmethod
    def joined(cls, chunks: "Sequence[Chunk]") -> "Chunk":
        """The images of all, in this order."""
        parts = [chunk.known() for chunk in chunks]
        return cls(**{name: torch.cat([one[name] for one in parts]) for name in parts[0]})


@dataclass(frozen=True)
class View:
    """One way to look at what a predictive is given.

    Attributes:
        predictive: its name.
        temperature: divides all logits.
        classes: the label space: indices of the logits that are kept, or None for all.
    """

    predictive: str
    temperature: float = 1.0
    classes: tuple[int, ...] | None = None

    def of(self, logits: Tensor) -> Tensor:
        """The logits (…, C) as this view has them, (…, C′)."""
        kept = logits if self.classes is None else logits[..., list(self.classes)]
        return kept if self.temperature == 1 else kept / self.temperature

    def of_covariance(self, covariance: Tensor) -> Tensor:
        """The same for a covariance (…, C, C)."""
        return self.of(self.of(covariance).mT).mT

    def of_chunk(self, chunk: Chunk) -> Chunk:
        """The same for all logits of a chunk; what is known of the image itself stays."""
        return replace(
            chunk,
            logits=self.of(chunk.logits),
            zeroshot=None if chunk.zeroshot is None else self.of(chunk.zeroshot),
            covariance=None if chunk.covariance is None else self.of_covariance(chunk.covariance),
        )
