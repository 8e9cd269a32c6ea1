"""Telling one kind of image from another by a score: out of distribution from in, or errors from right answers.

Every score is higher for an image that is more out of distribution, or more likely wrong. Those of this file need the
prediction only; `clipkal.metrics.distance` has those that look at where the image lies among the shots.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkal.metrics.checks import checked_scores

SCORES = (
    "msp",
    "entropy",
    "energy",
    "mutual_information",
    "nearest_shot",
    "mahalanobis",
    "relative_mahalanobis",
)
"""Names of the scores, as in results.json: 1 − max p (Hendrycks & Gimpel 2017, arXiv 1610.02136), the
entropy of the predictive distribution, the energy of the logits (Liu et al. 2020, arXiv 2010.03759), the mutual
information between label and parameters (needs a posterior), and three distances to the shots."""


def msp(probs: Any) -> Tensor:
    """Maximum-softmax-probability score as uncertainty: 1 − max_c p_c, float64 (N,), in [0, 1 − 1/C]."""
    return 1 - torch.as_tensor(probs).detach().cpu().amax(1).double()


def energy(logits: Any) -> Tensor:
    """The free energy −log Σ_c exp z_c of logits (N, C), float64 (N,): low where some class is strongly supported.

    Liu et al. (2020), arXiv 2010.03759, at temperature 1.
    """
    return -torch.as_tensor(logits).detach().to("cpu", torch.float64).logsumexp(1)


def separation(low: Any, high: Any) -> dict[str, float]:
    """{auroc, aupr, fpr95} of telling the images with scores `high` (to be found) from those with scores `low`."""
    ranked = _Ranked(low, high)
    return {"auroc": ranked.auroc(), "aupr": ranked.aupr(), "fpr95": ranked.fpr95()}


class _Ranked:
    """Both kinds of scores, sorted once. NumPy, since a run makes two hundred of these, and torch takes three times as long."""

    def __init__(self, id_scores: Any, ood_scores: Any) -> None:
        low, high = checked_scores(id_scores, "ID scores"), checked_scores(ood_scores, "OOD scores")
        self.low, self.high = np.sort(low.numpy()), np.sort(high.numpy())

    def auroc(self) -> float:
        counted = (np.searchsorted(self.low, self.high, side=side).sum() for side in ("left", "right"))
        return int(sum(counted)) / (2 * len(self.low) * len(self.high))

    def aupr(self) -> float:
        levels = np.unique(np.concatenate([self.low, self.high]))[::-1]
        missed, below = (np.searchsorted(scores, levels) for scores in (self.high, self.low))
        found = len(self.high) - missed  # at this level or above
        precision = found / (found + len(self.low) - below)
        gained = np.diff(found, prepend=0)
        return torch.from_numpy(precision * gained / len(self.high)).sum().item()

    def fpr95(self) -> float:
        accepted = -(-len(self.low) * 95 // 100)  # ⌈0.95 N⌉, in integers
        return float(np.searchsorted(self.high, self.low[accepted - 1], side="right") / len(self.high))


def auroc(id_scores: Any, ood_scores: Any) -> float:
    """Probability that an OOD image scores above an ID image, in [0, 1]; ties count half, so constants 0.5.

    Counted exactly, over all pairs by sorting: the value of scikit-learn's `roc_auc_score` but for its rounding (a
    test compares them), whose import takes longer than most runs. (torchmetrics passes scores outside [0, 1],
    such as entropies, through a sigmoid in which different scores become equal.)

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    return _Ranked(id_scores, ood_scores).auroc()


def aupr(id_scores: Any, ood_scores: Any) -> float:
    """Area under precision–recall with OOD as the positive class, in (0, 1]; scores that say nothing give their share.

    Average precision Σ_t (recall_t − recall_{t−1}) · precision_t over the thresholds t, images of equal score together:
    scikit-learn's `average_precision_score`. It depends on how many images there are of either kind, so their numbers
    belong beside it.

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    return _Ranked(id_scores, ood_scores).aupr()


def fpr95(id_scores: Any, ood_scores: Any) -> float:
    """Share of OOD images accepted at the threshold that accepts 95 % of the ID images, in [0, 1].

    The convention of Liang et al. (2018), arXiv 1706.02690: ID is the positive class. The threshold is the
    smallest ID score t with at least 95 % of the ID scores ≤ t, and every OOD score ≤ t is accepted, so
    ties count against the score (constant scores give 1). With fewer than 20 ID images the threshold is
    their largest score.

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    return _Ranked(id_scores, ood_scores).fpr95()
