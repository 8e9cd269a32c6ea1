"""Metrics: pure functions of probabilities and labels, on the full set, never averaged over batches.

`classification_metrics` is the dictionary stored for every set; `reliability` is what a reliability diagram
draws; `auroc` and `fpr95` judge how well an uncertainty score separates out-of-distribution images from
in-distribution ones; `aurc` and `risk_at_coverage` judge whether it ranks the model's own errors. Bad input
raises `ValueError`.
"""

from clipkal.metrics.calibration import Bin, adaptive_ece, ece, reliability
from clipkal.metrics.classification import accuracy, brier, nll, per_class_accuracy
from clipkal.metrics.detection import SCORES, auroc, fpr95, msp
from clipkal.metrics.selective import aurc, risk_at_coverage, risk_coverage
from clipkal.metrics.summary import classification_metrics

__all__ = [
    "SCORES",
    "Bin",
    "accuracy",
    "adaptive_ece",
    "aurc",
    "auroc",
    "brier",
    "classification_metrics",
    "ece",
    "fpr95",
    "msp",
    "nll",
    "per_class_accuracy",
    "reliability",
    "risk_at_coverage",
    "risk_coverage",
]
