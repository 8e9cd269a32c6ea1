"""A Gaussian over the logits, z ~ N(mean, covariance): checked, centred over the classes, and by Monte Carlo."""

import torch
from torch import Tensor

from clipkal.uncertainty.prediction import Prediction
from clipkal.uncertainty.predictives.sampled import SampleAverage

BUDGET = 2**28
"""Bytes that `monte_carlo` may use for its draws and factors at a time."""


def monte_carlo(
    mean: Tensor, covariance: Tensor, n: int, generator: torch.Generator | None = None
) -> Prediction:
    """E[softmax(z)] from n draws mean + L ε, with L Lᵀ = covariance.

    The same n standard normal vectors serve every image, so the result does not depend on how images are
    chunked, and the Monte-Carlo error of different images is correlated. The covariance of the
    class-centred logits is used: smaller draws, the same softmax.

    Args:
        mean: (N, C).
        covariance: (N, C, C), symmetric positive semi-definite; may be singular.
        n: number of draws, ≥ 1.
        generator: a CPU generator; None uses the global one.

    Raises:
        ValueError: as `checked_moments`; n < 1; a covariance with a negative eigenvalue beyond rounding.
    """
    mean, covariance = checked_moments(mean, covariance)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    images, classes = mean.shape
    noise = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    average = SampleAverage(images, classes)
    step = max(1, BUDGET // (8 * classes * (4 * n + 3 * classes)))
    for start in range(0, images, step):
        rows = slice(start, start + step)
        factor = _factor(centred(covariance[rows]))
        average.add_draws(rows, mean[rows] + torch.einsum("bcd,nd->nbc", factor, noise))
    return average.prediction()


def checked_moments(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU. Raises ValueError for wrong shapes, values that are not finite, or no symmetry."""
    mean, covariance = (t.detach().to("cpu", torch.float64) for t in (mean, covariance))
    if mean.ndim != 2 or 0 in mean.shape or covariance.shape != (*mean.shape, mean.shape[1]):
        raise ValueError(
            f"mean (N, C) and covariance (N, C, C) do not fit: {tuple(mean.shape)}, {tuple(covariance.shape)}"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError("the logit mean or covariance is not finite")
    scale = covariance.abs().amax((1, 2))
    if ((covariance - covariance.mT).abs().amax((1, 2)) > 1e-4 * scale).any():
        raise ValueError("the logit covariance is not symmetric")
    return mean, covariance


def centred_variance(covariance: Tensor) -> Tensor:
    """diag(A Σ A) for A = I − 11ᵀ/C, shape (N, C), without forming the product."""
    row = covariance.mean(2)
    variance = covariance.diagonal(dim1=1, dim2=2) - row - covariance.mean(1) + row.mean(1, keepdim=True)
    limit = 1e-5 * covariance.abs().amax((1, 2))
    if (variance < -limit[:, None]).any():
        raise ValueError(
            f"a logit variance is negative ({variance.min().item():.3g}); the covariance is not valid"
        )
    return variance.clamp(min=0)


def centred(covariance: Tensor) -> Tensor:
    """A Σ A, symmetrised, shape (N, C, C)."""
    left = covariance - covariance.mean(1, keepdim=True)
    both = left - left.mean(2, keepdim=True)
    return 0.5 * (both + both.mT)


def _factor(covariance: Tensor) -> Tensor:
    """L with L Lᵀ = Σ up to the direction of ones: Cholesky, or an eigenvalue root where Σ is singular."""
    classes = covariance.shape[1]
    size = covariance.diagonal(dim1=1, dim2=2).mean(1)
    # Σ is centred, so the vector of ones is in its null space: filling that direction changes no softmax.
    filled = covariance + (size / classes).clamp(min=1e-300)[:, None, None]
    factor, failed = torch.linalg.cholesky_ex(filled)
    bad = failed != 0
    if bad.any():
        factor[bad] = _root(filled[bad])
    return factor


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    top = values[:, -1:].clamp(min=1e-300)
    if (values < -1e-5 * top).any():
        raise ValueError(
            f"the logit covariance has eigenvalue {values.min().item():.3g}: it is not positive semi-definite"
        )
    return vectors * values.clamp(min=0).sqrt()[:, None, :]
