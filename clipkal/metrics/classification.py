"""Accuracy and the two proper scores: negative log-likelihood and Brier."""

from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.checks import checked


def predicted(probs: Tensor) -> Tensor:
    """Most probable class of each row, int64 (N,); the first one where several are equally probable."""
    return torch.from_numpy(probs.numpy().argmax(1))


def accuracy(probs: Any, labels: Any) -> float:
    """Share of images whose most probable class is the label, in [0, 1]; ValueError as in `checked`."""
    probs, labels = checked(probs, labels)
    return (predicted(probs) == labels).double().mean().item()


def nll(probs: Any, labels: Any, log_probs: Any = None) -> float:
    """Mean negative log-likelihood of the labels in nats, in [0, inf].

    Args:
        probs: probabilities (N, C).
        labels: class indices (N,).
        log_probs: their logarithms (N, C), where known: finite even where the probability has underflowed
            to 0.

    Returns:
        `inf` if a label was given probability 0. Nothing is clamped: a clamp would turn a model that ruled
        the truth out into one with a moderate score that depends on the clamp.

    Raises:
        ValueError: as `checked`; or log_probs of another shape, NaN, or above 0.
    """
    probs, labels = checked(probs, labels)
    log = probs.log() if log_probs is None else _checked_log(log_probs, probs)
    return max(0.0, -log.gather(1, labels[:, None]).mean().item())


def _checked_log(log_probs: Any, probs: Tensor) -> Tensor:
    log: Tensor = torch.as_tensor(log_probs).detach().to("cpu", torch.float64)
    if log.shape != probs.shape:
        raise ValueError(f"log_probs {tuple(log.shape)} do not fit probabilities {tuple(probs.shape)}")
    if not torch.allclose(log.exp(), probs, rtol=0, atol=1e-4):  # also false for NaN
        raise ValueError("log_probs are not the logarithms of the probabilities")
    return log


def brier(probs: Any, labels: Any) -> float:
    """Mean over images of Σ_c (p_c − 1[c = label])², in [0, 2]: a sum over classes, as in Brier (1950).

    Some libraries divide by C or count one class only; compare numbers with care.
    """
    probs, labels = checked(probs, labels)
    squares = probs.square().sum(1) - 2 * probs.gather(1, labels[:, None])[:, 0] + 1
    return max(0.0, squares.mean().item())


def per_class_accuracy(probs: Any, labels: Any) -> list[float | None]:
    """Share of each class's images classified rightly, C values in [0, 1]; None for an absent class."""
    probs, labels = checked(probs, labels)
    classes = probs.shape[1]
    count = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted(probs) == labels], minlength=classes)
    return [r / n if n else None for r, n in zip(right.tolist(), count.tolist(), strict=True)]
