"""The dictionary of metrics that is stored for every set and predictive."""

from typing import Any

from clipkal.metrics.calibration import BINS, adaptive_ece, ece
from clipkal.metrics.checks import checked
from clipkal.metrics.classification import accuracy, brier, nll, per_class_accuracy, predicted
from clipkal.metrics.selective import aurc


def classification_metrics(
    probs: Any, labels: Any, bins: int = BINS, log_probs: Any = None
) -> dict[str, Any]:
    """Every per-set metric, computed on the full set.

    Args:
        probs: probabilities (N, C).
        labels: class indices (N,) in [0, C).
        bins: bins of both calibration errors.
        log_probs: logarithms of `probs` (N, C), where known; see `nll`.

    Returns:
        accuracy, nll (nats, may be inf), brier, ece, adaptive_ece, aurc (of the max-softmax confidence),
        confidence (mean top-1 probability), per_class_accuracy (list of C, None for a class without
        images), and what the
        calibration figures depend on: n images, bins, classes (the size of the label space).

    Raises:
        ValueError: empty set, NaN, rows that do not sum to one, labels out of range, bins < 1.
    """
    probs, labels = checked(probs, labels)
    top = probs.amax(1)
    return {
        "accuracy": accuracy(probs, labels),
        "nll": nll(probs, labels, log_probs),
        "brier": brier(probs, labels),
        "ece": ece(probs, labels, bins),
        "adaptive_ece": adaptive_ece(probs, labels, bins),
        "aurc": aurc(top, predicted(probs) == labels),
        "confidence": top.mean().item(),
        "per_class_accuracy": per_class_accuracy(probs, labels),
        "n": len(labels),
        "bins": bins,
        "classes": probs.shape[1],
    }
