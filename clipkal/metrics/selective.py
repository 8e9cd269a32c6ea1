"""Selective prediction: how the error rate falls when the least confident images are left out."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.checks import checked_scores

COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Shares of the images that are answered, 5 % to all, at which results.json has the accuracy."""


def risk_coverage(confidence: Any, correct: Any) -> tuple[Tensor, Tensor]:
    """The risk–coverage curve (El-Yaniv & Wiener 2010).

    Images are accepted from the most to the least confident. Within a group of equal confidence the order
    is arbitrary, so the curve is its expectation over all orders: errors arrive evenly over the group.

    Args:
        confidence: any score, higher = more certain, shape (N,), finite.
        correct: whether each prediction is right, bool or 0/1, shape (N,).

    Returns:
        (coverage, risk), each float64 (N,): coverage k/N for k = 1…N, risk the expected share of errors
        among the k accepted images, in [0, 1].

    Raises:
        ValueError: empty or different lengths, a confidence that is not finite, or `correct` other than
            0/1.
    """
    confidence = checked_scores(confidence, "confidences")
    correct = checked_scores(correct, "outcomes")
    if len(correct) != len(confidence) or not ((correct == 0) | (correct == 1)).all():
        raise ValueError("outcomes must be one 0/1 value per confidence")
    levels, group, size = torch.unique(-confidence, return_inverse=True, return_counts=True)
    share = torch.bincount(group, 1 - correct, minlength=len(levels)) / size
    accepted = torch.arange(1, len(correct) + 1, dtype=torch.float64)
    risk = torch.repeat_interleave(share, size).cumsum(0) / accepted
    return accepted / len(correct), risk.clamp(0, 1)


def aurc(confidence: Any, correct: Any) -> float:
    """Area under the risk–coverage curve, mean_k risk(k/N), in [0, 1]; low is good.

    Source: Geifman et al. (2019), arXiv 1805.08206. A model without errors has 0; scores that say nothing
    give the error rate.
    """
    return risk_coverage(confidence, correct)[1].mean().item()


def e_aurc(confidence: Any, correct: Any) -> float:
    """Excess AURC: what the order of the confidences costs, AURC − AURC of the best order, in [0, 1]; low is good.

    0 where every error is less certain than every right answer, whatever the accuracy. Source: Geifman et al. (2019),
    who approximate the best order's AURC by r + (1 − r) log(1 − r) for the error rate r; here it is the exact one of N
    images, so the excess is never negative.
    """
    return excess_of(risk_coverage(confidence, correct)[1])


def excess_of(risk: Tensor) -> float:
    """`e_aurc` of a curve's risk (N,)."""
    images = len(risk)
    right = images - round(risk[-1].item() * images)
    accepted = torch.arange(1, images + 1, dtype=torch.float64)
    best = ((accepted - right).clamp(min=0) / accepted).mean()
    return max(0.0, (risk.mean() - best).item())


def accuracy_at(confidence: Any, correct: Any, coverages: Sequence[float] = COVERAGES) -> list[float]:
    """Expected accuracy on the ⌈coverage · N⌉ most confident images, for each coverage.

    Raises:
        ValueError: as `risk_coverage`, or a coverage outside (0, 1].
    """
    return accuracies_of(risk_coverage(confidence, correct)[1], coverages)


def accuracies_of(risk: Tensor, coverages: Sequence[float] = COVERAGES) -> list[float]:
    """`accuracy_at` of a curve's risk (N,)."""
    if bad := [one for one in coverages if not 0 < one <= 1]:
        raise ValueError(f"coverage must be in (0, 1], got {bad[0]}")
    images = len(risk)
    ends = [math.ceil(round(one * images, 9)) for one in coverages]  # 0.07 * 100 is 7.000000000000001
    return (1 - risk[[end - 1 for end in ends]]).tolist()


def risk_at_coverage(confidence: Any, correct: Any, coverage: float) -> float:
    """Expected share of errors among the ⌈coverage · N⌉ most confident images, in [0, 1]; errors as `accuracy_at`."""
    return 1 - accuracy_at(confidence, correct, [coverage])[0]
