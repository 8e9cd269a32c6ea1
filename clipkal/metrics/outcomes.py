"""What a prediction came to, image by image: all that most metrics read of N × C probabilities."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.checks import checked


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One value an image, so that 1000 classes are gone through once and not once a metric.

    Attributes:
        labels: int64 [N], in [0, classes).
        predicted: the most probable class, int64 [N]; the first one where several are equally probable.
        confidence: its probability, float64 [N].
        nll: −log p of the label in nats, float64 [N], in [0, inf].
        brier: Σ_c (p_c − 1[c = label])², float64 [N], in [0, 2].
        classes: C.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    nll: Tensor
    brier: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Whether the most probable class is the label, bool [N]."""
        return self.predicted == self.labels


def outcomes(probs: Any, labels: Any, log_probs: Any = None) -> Outcomes:
    """The outcomes of probabilities (N, C) for labels (N,).

    Args:
        probs: class probabilities (N, C).
        labels: class indices (N,).
        log_probs: logarithms of `probs` (N, C), where known: finite even where the probability has underflowed to 0.
            Without them a label of probability 0 has an infinite nll. Nothing is clamped: a clamp would turn a model
            that ruled the truth out into one with a moderate score that depends on the clamp.

    Raises:
        ValueError: as `checked`; or log_probs of another shape, or not the logarithms of the labels' probabilities.
    """
    probs, labels = checked(probs, labels)
    truth = probs.gather(1, labels[:, None])[:, 0]
    log = truth.log() if log_probs is None else _log_of_the_truth(log_probs, probs, labels, truth)
    brier = torch.einsum("nc,nc->n", probs, probs) - 2 * truth + 1
    predicted = torch.from_numpy(probs.numpy().argmax(1))
    confidence = probs.gather(1, predicted[:, None])[:, 0]
    return Outcomes(labels, predicted, confidence, (-log).clamp(min=0), brier.clamp(min=0), probs.shape[1])


def _log_of_the_truth(log_probs: Any, probs: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    log_probs = torch.as_tensor(log_probs).detach().cpu()
    if log_probs.shape != probs.shape:
        raise ValueError(f"log_probs {tuple(log_probs.shape)} do not fit probabilities {tuple(probs.shape)}")
    log: Tensor = log_probs.gather(1, labels[:, None])[:, 0].double()
    if not torch.allclose(log.exp(), truth, rtol=0, atol=1e-4):  # also false for NaN
        raise ValueError("log_probs are not the logarithms of the probabilities")
    return log
