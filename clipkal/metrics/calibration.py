"""Expected calibration error, by equal-width and by equal-mass bins, and the bins of a reliability diagram.

ECE is a property of a whole set. Averaged over batches it is biased upwards: for a perfectly calibrated
predictor on 50,000 images it reads 0.004 on the full set and 0.042 as the mean over batches of 512. Numbers
are comparable only at the same number of bins, images and classes, so `classification_metrics` stores these
next to them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.checks import checked
from clipkal.metrics.classification import predicted

BINS = 15
"""Bins of Guo et al. (2017), arXiv 1706.04599, and of torchmetrics."""


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: the images with confidence in [low, high); the last includes 1."""

    low: float
    high: float
    n: int
    accuracy: float | None
    confidence: float | None


def ece(probs: Any, labels: Any, bins: int = BINS) -> float:
    """Expected calibration error Σ_b n_b/N · |accuracy_b − confidence_b| over equal-width bins, in [0, 1].

    The value of torchmetrics' `binary_calibration_error` on the top-1 confidences in float64, to the last digit
    (a test compares them), from the bins of `reliability`: importing torchmetrics takes longer than most runs. A
    confidence of exactly 1 belongs to the last bin, where torchmetrics opens one of its own.

    Raises:
        ValueError: as `checked`, or bins < 1.
    """
    count, right, total = _sums(probs, labels, bins)
    gap = (right / count).nan_to_num() - (total / count).nan_to_num()
    return (gap.abs() * (count / count.sum())).sum().item()


def reliability(probs: Any, labels: Any, bins: int = BINS) -> list[Bin]:
    """The `bins` equal-width bins behind `ece`, from low to high; an empty one has None for its means."""
    edges = _edges(bins).tolist()
    sums = [part.tolist()[:bins] for part in _sums(probs, labels, bins)]
    return [
        Bin(low, high, int(n), r / n if n else None, t / n if n else None)
        for low, high, n, r, t in zip(edges[:-1], edges[1:], *sums, strict=True)
    ]


def adaptive_ece(probs: Any, labels: Any, bins: int = BINS) -> float:
    """The same sum over bins of equal mass, sizes differing by at most one, in [0, 1].

    Images of equal confidence share the mean of their outcomes, so the order of the images does not matter
    even where a group of ties straddles two bins. With fewer images than bins each image is a bin.
    Source: Nguyen & O'Connor (2015), arXiv 1508.05154.
    """
    confidence, correct = _confidence(probs, labels, bins)
    levels, group, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    outcome = torch.bincount(group, correct, minlength=len(levels)) / size
    gap = (outcome - levels)[group[confidence.argsort()]]
    return min(1.0, sum(part.sum().abs().item() for part in gap.tensor_split(bins)) / len(gap))


def _sums(probs: Any, labels: Any, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, right ones, and the sum of confidences, of each bin, float64 (bins + 1,); the last is 0."""
    confidence, correct = _confidence(probs, labels, bins)
    index = torch.bucketize(confidence, _edges(bins), right=True) - 1
    weights = (torch.ones_like(confidence), correct, confidence)
    count, right, total = (torch.bincount(index, one, minlength=bins + 1) for one in weights)
    return count, right, total


def _edges(bins: int) -> Tensor:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


def _confidence(probs: Any, labels: Any, bins: int) -> tuple[Tensor, Tensor]:
    """(top-1 probability, below 1; 1 where it is right else 0), both float64 (N,)."""
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, got {bins!r}")
    probs, labels = checked(probs, labels)
    below_one = torch.nextafter(
        torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    )
    return probs.amax(1).clamp(max=below_one.item()), (predicted(probs) == labels).double()
