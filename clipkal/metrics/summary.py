"""The dictionary of metrics that is stored for every set and predictive."""

from typing import Any

from clipkal.metrics.calibration import BINS, TopBins, equal_mass_ece
from clipkal.metrics.checks import checked
from clipkal.metrics.classification import Counts
from clipkal.metrics.classwise import ClassBins, class_bins
from clipkal.metrics.outcomes import Outcomes, outcomes
from clipkal.metrics.selective import COVERAGES, accuracies_of, excess_of, risk_coverage


def classification_metrics(
    probs: Any, labels: Any, bins: int = BINS, log_probs: Any = None
) -> dict[str, Any]:
    """Every per-set metric, computed on the full set; what is returned is said at `summary`.

    Args:
        probs: probabilities (N, C).
        labels: class indices (N,) in [0, C).
        bins: bins of the calibration errors.
        log_probs: logarithms of `probs` (N, C), where known; see `outcomes`.

    Raises:
        ValueError: empty set, NaN, rows that do not sum to one, labels out of range, bins < 1.
    """
    probs, labels = checked(probs, labels)
    found = outcomes(probs, labels, log_probs)
    return summary(found, TopBins.of(found, bins), class_bins(probs, labels, bins))


def summary(found: Outcomes, top: TopBins, table: ClassBins) -> dict[str, Any]:
    """The metrics of outcomes, and of the bins of their confidence and of every class's probability.

    Returns:
        accuracy; macro_f1; nll (nats, may be inf); brier, and its parts brier_reliability, brier_resolution,
        brier_uncertainty and brier_within_bin; ece, adaptive_ece (equal mass), classwise_ece and mce; aurc and e_aurc of
        the top-1 probability, coverage (list of 20) and accuracy_at_coverage (the same); confidence (its mean);
        per_class_accuracy (list of C, None for a class without images); and what the calibration figures depend on:
        n images, bins, classes (the size of the label space).
    """
    bins, counts = len(top.count), Counts.of(found)
    _, risk = risk_coverage(found.confidence, found.correct)
    score = found.brier.mean().item()
    parts = {f"brier_{name}": value for name, value in table.decomposition(score).items()}
    return {
        "accuracy": found.correct.double().mean().item(),
        "macro_f1": counts.macro_f1(),
        "nll": found.nll.mean().item(),
        "brier": score,
        **parts,
        "ece": top.ece,
        "adaptive_ece": equal_mass_ece(found, bins),
        "classwise_ece": table.ece,
        "mce": top.mce,
        "aurc": risk.mean().item(),
        "e_aurc": excess_of(risk),
        "coverage": list(COVERAGES),
        "accuracy_at_coverage": accuracies_of(risk),
        "confidence": found.confidence.mean().item(),
        "per_class_accuracy": counts.recalls(),
        "n": len(found),
        "bins": bins,
        "classes": found.classes,
    }
