"""Calibration of the top-1 confidence: ECE by equal-width and by equal-mass bins, MCE, and reliability diagrams.

ECE is a property of a whole set. Averaged over batches it is biased upwards: for a perfectly calibrated
predictor on 50,000 images it reads 0.004 on the full set and 0.042 as the mean over batches of 512. Numbers
are comparable only at the same number of bins, images and classes, so `classification_metrics` stores these
next to them.

Why these are ours and not torchmetrics' or scikit-learn's: importing `torchmetrics.functional.classification` takes
4 s and `sklearn.metrics` 1.6 s beside torch's own import (one core, warm disk; measured with torchmetrics 1.9 and
scikit-learn 1.8), more than most runs on cached features. The tests hold them to those libraries.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.outcomes import Outcomes, outcomes

BINS = 15
"""Bins of Guo et al. (2017), arXiv 1706.04599, and of torchmetrics."""
BELOW_ONE = 1 - 2**-53


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: the images with confidence in [low, high); the last includes 1."""

    low: float
    high: float
    n: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True, eq=False)
class TopBins:
    """Equal-width bins of the top-1 confidence.

    Attributes:
        count: images in each bin, float64 [bins].
        right: those classified rightly.
        mass: the sum of their confidences.
    """

    count: Tensor
    right: Tensor
    mass: Tensor

    @classmethod
    def of(cls, found: Outcomes, bins: int = BINS) -> "TopBins":
        """The bins of outcomes; a confidence of exactly 1 belongs to the last. ValueError for bins < 1."""
        confidence = found.confidence.clamp(max=BELOW_ONE)
        index = bin_index(confidence, bins)
        weights = (torch.ones_like(confidence), found.correct.double(), confidence)
        return cls(*(torch.bincount(index, one, minlength=bins) for one in weights))

    @property
    def gaps(self) -> Tensor:
        """|accuracy − confidence| of each bin, 0 for an empty one, float64 [bins]."""
        return ((self.right / self.count).nan_to_num() - (self.mass / self.count).nan_to_num()).abs()

    @property
    def ece(self) -> float:
        """Σ_b n_b/N · gap_b."""
        return (self.gaps * (self.count / self.count.sum())).sum().item()

    @property
    def mce(self) -> float:
        """max_b gap_b."""
        return self.gaps.max().item()

    def diagram(self) -> list[Bin]:
        """From low to high; an empty one has None for its means."""
        ends = edges(len(self.count)).tolist()
        sums = (part.tolist() for part in (self.count, self.right, self.mass))
        return [
            Bin(low, high, int(n), r / n if n else None, t / n if n else None)
            for low, high, n, r, t in zip(ends[:-1], ends[1:], *sums, strict=True)
        ]


def ece(probs: Any, labels: Any, bins: int = BINS) -> float:
    """Expected calibration error Σ_b n_b/N · |accuracy_b − confidence_b| over equal-width bins, in [0, 1].

    The value of torchmetrics' `binary_calibration_error` on the top-1 confidences in float64, to the last digit, but
    that a confidence of exactly 1 belongs to the last bin, where torchmetrics opens one of its own.

    Raises:
        ValueError: as `checked`, or bins < 1.
    """
    return TopBins.of(outcomes(probs, labels), bins).ece


def mce(probs: Any, labels: Any, bins: int = BINS) -> float:
    """Maximum calibration error, the largest gap of a bin that has images, in [0, 1]; errors as `ece`.

    One image in a bin of its own can decide it, so on small sets it says little. Naeini et al. (2015).
    """
    return TopBins.of(outcomes(probs, labels), bins).mce


def reliability(probs: Any, labels: Any, bins: int = BINS) -> list[Bin]:
    """The `bins` equal-width bins behind `ece`, from low to high; an empty one has None for its means."""
    return TopBins.of(outcomes(probs, labels), bins).diagram()


def adaptive_ece(probs: Any, labels: Any, bins: int = BINS) -> float:
    """ECE over bins of equal mass, sizes differing by at most one, in [0, 1]; errors as `ece`.

    Images of equal confidence share the mean of their outcomes, so the order of the images does not matter
    even where a group of ties straddles two bins. With fewer images than bins each image is a bin.
    Source: Nguyen & O'Connor (2015), arXiv 1508.05154; the name is Nixon et al.'s (2019), arXiv 1904.01685.
    """
    return equal_mass_ece(outcomes(probs, labels), bins)


def equal_mass_ece(found: Outcomes, bins: int = BINS) -> float:
    """`adaptive_ece` of outcomes."""
    edges(bins)  # refuses what is no number of bins
    confidence = found.confidence.clamp(max=BELOW_ONE)
    levels, group, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    outcome = torch.bincount(group, found.correct.double(), minlength=len(levels)) / size
    gap = (outcome - levels)[group[confidence.argsort()]]
    size, larger = divmod(len(gap), bins)  # so many bins have an image more
    cut = larger * (size + 1)
    sums = (gap[:cut].view(larger, size + 1).sum(1), gap[cut:].view(bins - larger, size).sum(1))
    return min(1.0, sum(torch.cat(sums).abs().tolist()) / len(gap))


def edges(bins: int) -> Tensor:
    """The bins + 1 ends of equal-width bins of [0, 1]; ValueError for bins < 1."""
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, got {bins!r}")
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


def bin_index(values: Tensor, bins: int) -> Tensor:
    """The equal-width bin of values in [0, 1), int64 of the same shape."""
    return torch.bucketize(values, edges(bins), right=True) - 1
