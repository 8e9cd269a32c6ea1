"""The guard in front of every metric.

The usual libraries accept what they should refuse: torchmetrics 1.9 takes one NaN among 5,000 rows as a
sign that it was given logits, applies a softmax to the probabilities and returns twice the calibration
error without a word, and rows that do not sum to one pass unseen. Here such input is an error.
"""

from typing import Any

import torch
from torch import Tensor

ROW_SUM_TOLERANCE = 1e-4
"""How far a row of probabilities may be from one; float32 softmax over 1000 classes stays well within."""


def checked(probs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Probabilities and labels as CPU tensors that a metric may trust.

    Args:
        probs: class probabilities, shape (N, C), tensor or array of floats.
        labels: class indices, shape (N,), integers in [0, C).

    Returns:
        (probs as float64 (N, C), labels as int64 (N,)), neither clamped nor renormalised.

    Raises:
        ValueError: empty set, wrong shape, label out of range, NaN or infinite probability, negative
            probability, or a row that does not sum to 1 within `ROW_SUM_TOLERANCE` (the message names the
            first such row).
    """
    probs = torch.as_tensor(probs).detach().to("cpu", torch.float64)
    labels = torch.as_tensor(labels).detach().cpu()
    if probs.ndim != 2 or 0 in probs.shape:
        raise ValueError(f"probabilities must have shape (N, C) with N, C ≥ 1, got {tuple(probs.shape)}")
    if labels.shape != probs.shape[:1]:
        raise ValueError(f"{len(probs)} rows of probabilities need as many labels, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    labels = labels.to(torch.int64)
    off = (probs.sum(1) - 1).abs()
    if not (off <= ROW_SUM_TOLERANCE).all() or probs.min() < 0:  # also where the sum is not a number
        _refuse_rows(~torch.isfinite(probs).all(1), "is not finite")
        _refuse_rows((probs < 0).any(1), "has a negative probability")
        _refuse_rows(off > ROW_SUM_TOLERANCE, "does not sum to 1")
    _refuse_rows((labels < 0) | (labels >= probs.shape[1]), f"has a label outside [0, {probs.shape[1]})")
    return probs, labels


def _refuse_rows(bad: Tensor, why: str) -> None:
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(f"row {first} {why} ({int(bad.sum())} of {len(bad)} rows are so)")


def checked_scores(scores: Any, what: str) -> Tensor:
    """One finite score per image as a float64 CPU tensor (N,), N ≥ 1; else ValueError."""
    scores = torch.as_tensor(scores).detach().to("cpu", torch.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"{what} must be one value per image, got shape {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError(f"{what} contain {int((~torch.isfinite(scores)).sum())} values that are not finite")
    return scores
