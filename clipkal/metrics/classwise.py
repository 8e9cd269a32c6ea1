"""Calibration of every class's probability: class-wise ECE and the decomposition of the Brier score.

Both read one table, the bins of each class's probability, which is made in one pass over the probabilities.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.calibration import BELOW_ONE, BINS, bin_index
from clipkal.metrics.checks import checked
from clipkal.metrics.outcomes import outcomes

CHUNK = 2**22
"""Probabilities that are sorted into bins at a time."""


@dataclass(frozen=True, eq=False)
class ClassBins:
    """Equal-width bins of every class's probability over N images, float64 [C, bins] each.

    Attributes:
        count: images whose probability of the class lies in the bin.
        positive: those among them that are of the class.
        mass: the sum of these probabilities.
    """

    count: Tensor
    positive: Tensor
    mass: Tensor

    @property
    def ece(self) -> float:
        """Mean over classes of Σ_b n_cb/N · |share of the class − mean probability| in the bin, in [0, 1]."""
        return ((self.positive - self.mass).abs().sum() / self.count.sum()).item()

    def decomposition(self, brier: float) -> dict[str, float]:
        """{reliability, resolution, uncertainty, within_bin} of a Brier score over the same images."""
        images, share = self.count[0].sum(), self.positive.sum(1) / self.count[0].sum()
        weight = self.count / images
        seen = (self.positive / self.count).nan_to_num()
        said = (self.mass / self.count).nan_to_num()
        parts = {
            "reliability": (weight * (said - seen).square()).sum().item(),
            "resolution": (weight * (seen - share[:, None]).square()).sum().item(),
            "uncertainty": (share * (1 - share)).sum().item(),
        }
        explained = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
        return parts | {"within_bin": brier - explained}


def class_bins(probs: Tensor, labels: Tensor, bins: int = BINS) -> ClassBins:
    """The table of checked probabilities (N, C) for labels (N,)."""
    images, classes = probs.shape
    count, positive, mass = (torch.zeros(classes * bins, dtype=torch.float64) for _ in range(3))
    first = bins * torch.arange(classes)
    step = max(1, CHUNK // classes)
    for rows in (slice(start, start + step) for start in range(0, images, step)):
        part = probs[rows].double()
        index = first + bin_index(part.clamp(max=BELOW_ONE), bins)
        count += torch.bincount(index.flatten(), minlength=len(count))
        mass += torch.bincount(index.flatten(), part.flatten(), minlength=len(count))
        positive += torch.bincount(index.gather(1, labels[rows, None])[:, 0], minlength=len(count))
    return ClassBins(*(one.view(classes, bins) for one in (count, positive, mass)))


def classwise_ece(probs: Any, labels: Any, bins: int = BINS) -> float:
    """Class-wise (static) calibration error, 1/C Σ_c Σ_b n_cb/N · |share of class c − mean p_c|, in [0, 1].

    Every class's probability counts, not the largest alone. Most of them are near 0, so it falls like 1/C: compare it
    only at the same number of classes.

    Source: Nixon et al. (2019), arXiv 1904.01685 (SCE); Kull et al. (2019), arXiv 1910.12656 (class-wise ECE).

    Raises:
        ValueError: as `checked`, or bins < 1.
    """
    return class_bins(*checked(probs, labels), bins).ece


def brier_decomposition(probs: Any, labels: Any, bins: int = BINS) -> dict[str, float]:
    """Murphy's (1973) parts of the Brier score, summed over classes, each over `bins` equal-width bins.

        Brier = reliability − resolution + uncertainty + within_bin

    reliability (low is good) is the squared gap between what a bin says and what happens there; resolution (high is
    good) how far what happens differs between bins; uncertainty Σ_c s_c (1 − s_c), with the share s_c of class c, is the
    set's own. Murphy's identity needs forecasts that are constant in a bin; `within_bin` is what their spread adds,
    variance − 2 · covariance with the outcome (Stephenson et al. 2008), mostly negative: resolution that the bins do
    not see. With few images reliability and resolution are both biased upwards.

    Raises:
        ValueError: as `checked`, or bins < 1.
    """
    brier = outcomes(probs, labels).brier.mean().item()
    return class_bins(*checked(probs, labels), bins).decomposition(brier)
