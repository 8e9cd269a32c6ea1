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
    low, high = checked_scores(low, "ID scores"), checked_scores(high, "OOD scores")
    to_find = torch.arange(len(low) + len(high)) >= len(low)
    return separations(torch.cat([low, high])[None], to_find)[0]


def separations(scores: Tensor, to_find: Tensor) -> list[dict[str, float]]:
    """The `separation` that each of several scores makes between the same images.

    Args:
        scores: (k, N).
        to_find: bool (N,), which images should have the high scores: at least one, and not all.

    Raises:
        ValueError: all images are of one kind, or a score is not finite.
    """
    scores = checked_scores(scores.flatten(), "scores").view(scores.shape)
    if to_find.all() or not to_find.any():
        raise ValueError("telling images apart needs both kinds of them")
    order = scores.numpy().argsort(1)  # NumPy, since torch takes three times as long
    ordered = np.take_along_axis(scores.numpy(), order, 1)
    ends = np.concatenate([ordered[:, 1:] != ordered[:, :-1], np.ones((len(order), 1), bool)], 1)
    kinds = (~to_find.numpy()[order], to_find.numpy()[order])
    (low, low_upto), (high, high_upto) = (_levels(kind, ends) for kind in kinds)
    lows, highs = (int(upto[0, -1]) for upto in (low_upto, high_upto))

    auroc = (high * (2 * low_upto - low)).sum(1) / (2 * lows * highs)  # ties count half
    low_above, high_above = lows - low_upto + low, highs - high_upto + high  # at a level or above
    gained = high_above / (high_above + low_above) * high / highs  # precision times the rise of recall
    downwards = zip(gained[:, ::-1], ends[:, ::-1], strict=True)
    aupr = [torch.from_numpy(row[at]).sum().item() for row, at in downwards]
    accepted = -(-lows * 95 // 100)  # ⌈0.95 N⌉, in integers
    threshold = (ends & (low_upto >= accepted)).argmax(1)
    fpr95 = np.take_along_axis(high_upto, threshold[:, None], 1)[:, 0] / highs
    rows = zip(auroc.tolist(), aupr, fpr95.tolist(), strict=True)
    return [{"auroc": a, "aupr": b, "fpr95": c} for a, b, c in rows]


def _levels(kind: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of a kind at each level and up to it, int64 (k, N) each: equal scores are one level, counted where it ends.

    Args:
        kind: which images are of the kind, bool (k, N), in the order of each of k scores.
        ends: where a level ends, bool (k, N). Elsewhere the first count is 0, the second part of the level's.
    """
    upto = kind.cumsum(1)
    before = np.maximum.accumulate(upto * ends, 1)[:, :-1]  # up to the last level that ended
    upto_last = np.concatenate([np.zeros((len(kind), 1), np.int64), before], 1)
    return ends * (upto - upto_last), upto


def auroc(id_scores: Any, ood_scores: Any) -> float:
    """Probability that an OOD image scores above an ID image, in [0, 1]; ties count half, so constants 0.5.

    Counted exactly, over all pairs by sorting: the value of scikit-learn's `roc_auc_score` but for its rounding (a
    test compares them), whose import takes longer than most runs. (torchmetrics passes scores outside [0, 1],
    such as entropies, through a sigmoid in which different scores become equal.)

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    return separation(id_scores, ood_scores)["auroc"]


def aupr(id_scores: Any, ood_scores: Any) -> float:
    """Area under precision–recall with OOD as the positive class, in (0, 1]; scores that say nothing give their share.

    Average precision Σ_t (recall_t − recall_{t−1}) · precision_t over the thresholds t, images of equal score together:
    scikit-learn's `average_precision_score`. It depends on how many images there are of either kind, so their numbers
    belong beside it.

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    return separation(id_scores, ood_scores)["aupr"]


def fpr95(id_scores: Any, ood_scores: Any) -> float:
    """Share of OOD images accepted at the threshold that accepts 95 % of the ID images, in [0, 1].

    The convention of Liang et al. (2018), arXiv 1706.02690: ID is the positive class. The threshold is the
    smallest ID score t with at least 95 % of the ID scores ≤ t, and every OOD score ≤ t is accepted, so
    ties count against the score (constant scores give 1). With fewer than 20 ID images the threshold is
    their largest score.

    Raises:
        ValueError: either set is empty or has a score that is not finite.
    """
    return separation(id_scores, ood_scores)["fpr95"]
