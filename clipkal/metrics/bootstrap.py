"""Bootstrap intervals over images: how far accuracy, NLL and ECE could be others with other test images.

They hold the trained model fixed. How far another draw of the *shots* moves a number is seen over seeds, in the report.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from clipkal.metrics.calibration import BELOW_ONE, BINS, bin_index
from clipkal.metrics.outcomes import Outcomes

RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 2**22
"""Image draws made at a time."""
KEPT = CHUNK // 4
"""Image draws of small sets that are kept, 8 MB for each size of a set."""

Interval = tuple[float | None, float | None]


def bootstrap_intervals(
    every: Sequence[Outcomes],
    bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[dict[str, Interval]]:
    """Percentile intervals of accuracy, nll and ece for several predictions of the same N images.

    The same images are drawn for all of them, and for any other N images with the same seed. Each of the three is a
    function of means over images, ECE = Σ_b |mean_i 1[i in b] (correct_i − confidence_i)|, so that all resamples are one
    product of their counts with a table.

    A resampled ECE has the noise of a finite set twice, so its percentiles lie too high: of 300 sets of 500 images with a
    true ECE of 2 %, they covered it in none. The interval of `ece` is therefore the reflected one, [2ê − upper,
    2ê − lower] (Efron & Tibshirani 1993, "basic"), not below 0; it covered it in 91 %, and 4 % and 8 % in 85 and 87 %.
    The other two are the percentiles themselves.

    Args:
        every: outcomes, each of N images.
        bins: of the ECE.
        resamples: draws of N images with replacement.
        seed: which draws.
        level: coverage of the intervals, in (0, 1).

    Returns:
        For each prediction {"accuracy": (low, high), "nll": …, "ece": …}; (None, None) where the nll is infinite.

    Raises:
        ValueError: different N, resamples < 1, or level outside (0, 1).
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be positive and level in (0, 1), got {resamples} and {level}")
    if not every:
        return []
    tables = [_table(one, bins) for one in every]
    if len({len(table) for table in tables}) > 1:
        raise ValueError("bootstrap_intervals needs predictions of the same images")
    means = resampled_means(torch.cat(tables, 1), resamples, seed)
    own = torch.stack([table.mean(0) for table in tables])
    return list(_intervals(means.view(resamples, *own.shape), own, level))


def resampled_means(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Means of values (N, k) over `resamples` draws of N rows with replacement, (resamples, k)."""
    images = len(values)
    parts = (_kept_counts if resamples * images <= KEPT else _counts)(images, resamples, seed)
    return torch.cat([counts @ values for counts in parts]) / images


@lru_cache(maxsize=4)
def _kept_counts(images: int, resamples: int, seed: int) -> list[Tensor]:
    """The draws for a small set, kept for others of its size: they are the same for every set and every run."""
    return list(_counts(images, resamples, seed))


def _counts(images: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each image is drawn, (draws, images), for `CHUNK` draws of an image at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // images)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, images, (size, images))
        drawn += images * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images)
        yield torch.from_numpy(counts).double()


def _table(found: Outcomes, bins: int) -> Tensor:
    """Columns correct, nll, and for each bin correct − confidence of the images in it, float64 (N, 2 + bins)."""
    correct = found.correct.double()
    gap = torch.zeros(len(found), bins, dtype=torch.float64)
    index = bin_index(found.confidence.clamp(max=BELOW_ONE), bins)
    gap.scatter_(1, index[:, None], (correct - found.confidence)[:, None])
    nll = found.nll if torch.isfinite(found.nll).all() else torch.full_like(found.nll, math.nan)
    return torch.cat([correct[:, None], nll[:, None], gap], 1)


def _intervals(means: Tensor, own: Tensor, level: float) -> Iterator[dict[str, Interval]]:
    """Of k tables, from their resampled means (resamples, k, 2 + bins) and their own (k, 2 + bins)."""
    values = torch.stack([means[:, :, 0], means[:, :, 1], means[:, :, 2:].abs().sum(2)])
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    limits, eces = values.quantile(ends, 1).permute(2, 1, 0).tolist(), own[:, 2:].abs().sum(1).tolist()
    for (accuracy, nll, (low, high)), ece in zip(limits, eces, strict=True):
        yield {
            "accuracy": tuple(accuracy),
            "nll": (None, None) if math.isnan(nll[0]) else tuple(nll),
            "ece": (max(0.0, 2 * ece - high), max(0.0, 2 * ece - low)),
        }
