"""Conformal prediction sets: all classes that cannot be ruled out at a level, with a guarantee that needs no calibration.

A score s(x, y), higher = stranger, is given to calibration images with their true labels; a test image gets every
class y whose score is not stranger than almost all of theirs:

    C(x) = {y : #{i : s_i < s(x, y)} < (1 − α)(n + 1)}

If test and calibration images are exchangeable *for the model that scores them*, C(x) holds the true label with
probability at least 1 − α. Which model scores what decides whether they are:

* Split conformal: the model never saw the calibration images (validation images). The guarantee is exact.
* The shots themselves, scored by the model that learnt from them: not exchangeable. They are scored too well, the sets
  come out too small, and coverage is lost. Never do that.
* Cross-conformal: each shot is scored by a model that did not see it. With a test image scored by the same fold's model
  (`folds` of several pairs: CV+, jackknife+) coverage is at least 1 − 2α, and about 1 − α in practice (Barber et al.
  2021, Romano et al. 2020, arXiv 2006.02544). With one pair, leave-one-out scores of the shots and the full model's
  scores of the test images (the jackknife), it is about 1 − α where one shot changes little, without a guarantee.

With n < 1/α − 1 calibration images the set is every class: fewer cannot rule anything out at that level.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics.checks import checked

ALPHA = 0.1
"""Share of images whose set may miss the label."""
SCORES = ("lac", "aps")
"""Names of the scores, as in results.json."""
CHUNK = 2**22
"""Scores that are held at a time."""


def lac(probs: Tensor) -> Tensor:
    """The score 1 − p_y of every class (N, C): the smallest sets on average (Sadinle et al. 2019, arXiv 1609.00451)."""
    return 1 - probs


def aps(probs: Tensor, uniform: Tensor) -> Tensor:
    """The probability of all classes above y, and a random share of y's own, (N, C) in [0, 1].

        s(x, y) = Σ_{c : p_c > p_y} p_c + u · p_y

    Sets grow with the uncertainty of the image (Romano et al. 2020, arXiv 2006.02544). Without the random share they are
    far too large. `uniform` (N,) has one u in [0, 1) an image. Classes of equal probability come one after the other.
    """
    order = torch.from_numpy((-probs).numpy().argsort(1))  # on the CPU 2.5 times as fast as torch's
    ordered = probs.gather(1, order)
    scores = ordered.cumsum(1) - (1 - uniform[:, None]) * ordered
    return torch.empty_like(scores).scatter_(1, order, scores)


def score(kind: str, probs: Tensor, uniform: Tensor) -> Tensor:
    """The score called `kind` of every class of every image, (N, C); `uniform` (N,) as `aps`, which alone needs it."""
    if kind not in SCORES:
        raise ValueError(f"a conformal score is one of {', '.join(SCORES)}, got {kind!r}")
    return lac(probs) if kind == "lac" else aps(probs, uniform)


def threshold(scores: Tensor, alpha: float = ALPHA) -> float:
    """The ⌈(1 − α)(n + 1)⌉-th smallest of n calibration scores; inf where n < 1/α − 1."""
    rank = _rank(len(scores), alpha)
    return math.inf if rank > len(scores) else scores.sort().values[rank - 1].item()


def smallest_calibration(alpha: float = ALPHA) -> int:
    """The fewest calibration images with which a class can be ruled out: ⌈1/α⌉ − 1."""
    return math.ceil(round(1 / alpha, 9)) - 1


def prediction_sets(folds: Iterable[tuple[Tensor, Tensor]], alpha: float = ALPHA) -> Tensor:
    """Which classes each test image's set has, bool (N, C).

    Args:
        folds: pairs (scores of calibration images at their labels (n_k,), scores of all test images and classes (N, C)),
            both by the same model, which did not see these calibration images. One pair is split conformal; with
            several, one model each, it is CV+.
        alpha: share of images whose set may miss the label.

    Raises:
        ValueError: no fold, alpha outside (0, 1), or a score that is not finite.
    """
    below: Tensor | None = None
    calibration = 0
    for held_out, test in folds:
        if not (torch.isfinite(held_out).all() and torch.isfinite(test).all()):
            raise ValueError("a conformal score is not finite")
        ordered = held_out.to(test.dtype).sort().values
        counted = torch.searchsorted(ordered, test.contiguous())
        below = counted if below is None else below + counted
        calibration += len(held_out)
    if below is None:
        raise ValueError("prediction sets need calibration scores")
    return below < _rank(calibration, alpha)


def mondrian_thresholds(scores: Tensor, labels: Tensor, classes: int, alpha: float = ALPHA) -> Tensor | None:
    """A threshold for each class from its own calibration images, float64 (C,); None where a class has too few.

    The sets {y : s(x, y) ≤ threshold_y} hold the label with probability 1 − α *for each true class* (Vovk et al. 2003,
    "Mondrian"). It takes `smallest_calibration(alpha)` images of every class, more than few-shot validation has: a
    class with fewer would be in every set.

    Args:
        scores: of calibration images at their labels (n,).
        labels: of the same images (n,), in [0, classes).
        classes: C.
        alpha: share of each class's images whose set may miss the label.
    """
    if int(labels.bincount(minlength=classes).min()) < smallest_calibration(alpha):
        return None
    own = [threshold(scores[labels == c], alpha) for c in range(classes)]
    return torch.tensor(own, dtype=torch.float64)


def set_metrics(size: Tensor, hit: Tensor, classes: int) -> dict[str, float]:
    """{coverage, size, empty, full}: share of sets with the label, mean size, share of empty and of full sets.

    Args:
        size: classes in each image's set (N,).
        hit: whether the label is one of them, bool (N,).
        classes: C.
    """
    return {
        "coverage": hit.double().mean().item(),
        "size": size.double().mean().item(),
        "empty": (size == 0).double().mean().item(),
        "full": (size == classes).double().mean().item(),
    }


class SplitConformal:
    """Thresholds from calibration images, kept for any test images: the sets {y : s(x, y) ≤ threshold}.

    Args:
        probs: probabilities (n, C) of calibration images, by a model that did not see them, or each by one that did not
            see it; see the top of this file for what that makes of the guarantee.
        labels: their labels (n,).
        kind: a name of `SCORES`.
        alpha: share of images whose set may miss the label.
        seed: of the random share of `aps`.

    Attributes:
        pooled: one threshold for all classes; inf where there are too few calibration images.
        own: one for each class (C,), or None; see `mondrian_thresholds`.

    Raises:
        ValueError: as `checked`, or alpha outside (0, 1).
    """

    def __init__(
        self, probs: Any, labels: Any, kind: str = "lac", alpha: float = ALPHA, seed: int = 0
    ) -> None:
        probs, labels = checked(probs, labels)
        self.kind, self.seed, self.classes = kind, seed, probs.shape[1]
        scores = score(kind, probs, uniforms(len(probs), seed)).gather(1, labels[:, None])[:, 0]
        self.pooled = threshold(scores, alpha)
        self.own = mondrian_thresholds(scores, labels, self.classes, alpha)

    def judge(self, probs: Any, labels: Any) -> dict[str, Any]:
        """The `set_metrics` of test images (N, C) with labels (N,), and under "mondrian" those of sets by class.

        "mondrian" is None where the count of a class does not allow them. Raises ValueError as `checked`, or for other
        classes than those of the calibration images.
        """
        probs, labels = checked(probs, labels)
        if probs.shape[1] != self.classes:
            raise ValueError(f"{probs.shape[1]} classes, but the calibration images have {self.classes}")
        uniform = uniforms(len(probs), self.seed + 1)
        limits = [torch.tensor(self.pooled, dtype=torch.float64)] + ([] if self.own is None else [self.own])
        sizes, hits = ([torch.zeros(len(probs), dtype=torch.int64) for _ in limits] for _ in range(2))
        step = max(1, CHUNK // self.classes)
        for rows in (slice(start, start + step) for start in range(0, len(probs), step)):
            scores = score(self.kind, probs[rows], uniform[rows])
            for limit, size, hit in zip(limits, sizes, hits, strict=True):
                sets = scores <= limit
                size[rows] = sets.sum(1)
                hit[rows] = sets.gather(1, labels[rows, None])[:, 0].long()
        found: list[dict[str, Any]] = [
            set_metrics(size, hit, self.classes) for size, hit in zip(sizes, hits, strict=True)
        ]
        return found[0] | {"mondrian": found[1] if len(found) > 1 else None}


def uniforms(images: int, seed: int) -> Tensor:
    """One uniform number in [0, 1) an image, float64 (N,)."""
    return torch.rand(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rank(calibration: int, alpha: float) -> int:
    """⌈(1 − α)(n + 1)⌉, without the rounding of (1 − 0.1) · 10 = 9.000000000000002."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    return math.ceil(round((1 - alpha) * (calibration + 1), 9))
