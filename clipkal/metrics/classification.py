"""Accuracy, macro-F1, and the two proper scores: negative log-likelihood and Brier."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipkal.metrics.outcomes import Outcomes, outcomes


def accuracy(probs: Any, labels: Any) -> float:
    """Share of images whose most probable class is the label, in [0, 1]; ValueError as in `checked`."""
    return outcomes(probs, labels).correct.double().mean().item()


def nll(probs: Any, labels: Any, log_probs: Any = None) -> float:
    """Mean negative log-likelihood of the labels in nats, in [0, inf]; arguments and errors as `outcomes`."""
    return outcomes(probs, labels, log_probs).nll.mean().item()


def brier(probs: Any, labels: Any) -> float:
    """Mean over images of Σ_c (p_c − 1[c = label])², in [0, 2]: a sum over classes, as in Brier (1950).

    Some libraries divide by C or count one class only; compare numbers with care.
    """
    return outcomes(probs, labels).brier.mean().item()


def per_class_accuracy(probs: Any, labels: Any) -> list[float | None]:
    """Share of each class's images classified rightly, C values in [0, 1]; None for an absent class."""
    return Counts.of(outcomes(probs, labels)).recalls()


def macro_f1(probs: Any, labels: Any) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), in [0, 1]; ValueError as in `checked`.

    Over the classes that occur as a label or as a prediction, like scikit-learn's `f1_score(average="macro")`.
    """
    return Counts.of(outcomes(probs, labels)).macro_f1()


class Counts(NamedTuple):
    """Images of each class that are classified rightly, labelled so, and predicted so, int64 (C,) each."""

    right: Tensor
    labelled: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, found: Outcomes) -> "Counts":
        """The counts of outcomes."""
        kinds = (found.labels[found.correct], found.labels, found.predicted)
        return cls(*(torch.bincount(kind, minlength=found.classes) for kind in kinds))

    def recalls(self) -> list[float | None]:
        """`per_class_accuracy`."""
        both = zip(self.right.tolist(), self.labelled.tolist(), strict=True)
        return [right / n if n else None for right, n in both]

    def macro_f1(self) -> float:
        """`macro_f1`."""
        either = self.labelled + self.predicted
        return (2 * self.right[either > 0] / either[either > 0].double()).mean().item()
