"""Telling out-of-distribution images from in-distribution ones by a score (higher = more OOD)."""

from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.checks import checked_scores

SCORES = ("msp", "entropy", "mutual_information")
"""Names of the scores, as in results.json: 1 − max p (Hendrycks & Gimpel 2017, arXiv 1610.02136), the
entropy of the predictive distribution, and the mutual information between label and parameters (needs a
posterior)."""


def msp(probs: Any) -> Tensor:
    """Maximum-softmax-probability score as uncertainty: 1 − max_c p_c, float64 (N,), in [0, 1 − 1/C]."""
    return 1 - torch.as_tensor(probs).detach().to("cpu", torch.float64).amax(1)


def auroc(id_scores: Any, ood_scores: Any) -> float:
    """Probability that an OOD image scores above an ID image, in [0, 1]; ties count half, so constants 0.5.

    Counted exactly, over all pairs by sorting: the value of scikit-learn's `roc_auc_score` but for its rounding (a
    test compares them), whose import takes longer than most runs. (torchmetrics passes scores outside [0, 1],
    such as entropies, through a sigmoid in which different scores become equal.)

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    low, high = checked_scores(id_scores, "ID scores"), checked_scores(ood_scores, "OOD scores")
    ordered = low.sort().values
    below, not_above = (int(torch.searchsorted(ordered, high, right=side).sum()) for side in (False, True))
    return (below + not_above) / (2 * len(low) * len(high))


def fpr95(id_scores: Any, ood_scores: Any) -> float:
    """Share of OOD images accepted at the threshold that accepts 95 % of the ID images, in [0, 1].

    The convention of Liang et al. (2018), arXiv 1706.02690: ID is the positive class. The threshold is the
    smallest ID score t with at least 95 % of the ID scores ≤ t, and every OOD score ≤ t is accepted, so
    ties count against the score (constant scores give 1). With fewer than 20 ID images the threshold is
    their largest score.

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    low, high = checked_scores(id_scores, "ID scores"), checked_scores(ood_scores, "OOD scores")
    accepted = -(-len(low) * 95 // 100)  # ⌈0.95 N⌉, in integers
    threshold = low.sort().values[accepted - 1]
    return (high <= threshold).double().mean().item()
