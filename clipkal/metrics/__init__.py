"""Metrics: pure functions of probabilities and labels, on the full set, never averaged over batches.

`classification_metrics` is the dictionary stored for every set; `reliability` is what a reliability diagram
draws; `auroc`, `aupr` and `fpr95` judge how well an uncertainty score separates out-of-distribution images from
in-distribution ones, or errors from right answers; `aurc` and `accuracy_at` judge whether it ranks the model's own
errors; `prediction_sets` are conformal; `bootstrap_intervals` say how far a number depends on the test images. Bad
input raises `ValueError`.
"""

from clipkal.metrics.bootstrap import bootstrap_intervals
from clipkal.metrics.calibration import Bin, adaptive_ece, ece, mce, reliability
from clipkal.metrics.classification import accuracy, brier, macro_f1, nll, per_class_accuracy
from clipkal.metrics.classwise import brier_decomposition, classwise_ece
from clipkal.metrics.conformal import SplitConformal, prediction_sets
from clipkal.metrics.detection import SCORES, aupr, auroc, energy, fpr95, msp, separation, separations
from clipkal.metrics.distance import Gaussians, NearestShot, nearest_shot
from clipkal.metrics.outcomes import Outcomes, outcomes
from clipkal.metrics.selective import accuracy_at, aurc, e_aurc, risk_at_coverage, risk_coverage
from clipkal.metrics.summary import classification_metrics, summary

__all__ = [
    "SCORES",
    "Bin",
    "Gaussians",
    "NearestShot",
    "Outcomes",
    "SplitConformal",
    "accuracy",
    "accuracy_at",
    "adaptive_ece",
    "aupr",
    "aurc",
    "auroc",
    "bootstrap_intervals",
    "brier",
    "brier_decomposition",
    "classification_metrics",
    "classwise_ece",
    "e_aurc",
    "ece",
    "energy",
    "fpr95",
    "macro_f1",
    "mce",
    "msp",
    "nearest_shot",
    "nll",
    "outcomes",
    "per_class_accuracy",
    "prediction_sets",
    "reliability",
    "risk_at_coverage",
    "risk_coverage",
    "separation",
    "separations",
    "summary",
]
