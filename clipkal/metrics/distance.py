"""Distances of an image to the shots in feature space, as scores: higher = less like anything that was shown.

They know nothing of the prediction: an image far from all shots is *novel*, not necessarily *wrong*.
"""

import math

import torch
from torch import Tensor

CHUNK = 2**24
"""Distances between images and shots (or class means) that are held at a time."""


def nearest_shot(features: Tensor, shots: Tensor, to_others: bool = False) -> Tensor:
    """`NearestShot.distance`, for those who ask once."""
    return NearestShot(shots.to(features.device)).distance(features, to_others)


class NearestShot:
    """Shots that images are compared with.

    Which shot is nearest is found in float32 (16 shots of 1000 classes are 10¹² flop for 50,000 images), how far it is
    in float64. For features of unit norm the order is that of 1 − the largest cosine similarity.

    Args:
        shots: features of the shots (n, d).

    Raises:
        ValueError: wrong shape, no shot, or a feature that is not finite.
    """

    def __init__(self, shots: Tensor) -> None:
        self.shots = _checked(shots, shots.shape[-1]).double()
        if not len(shots):
            raise ValueError("there is no shot to compare with")
        self._single, self._half = self.shots.float(), 0.5 * self.shots.square().sum(1).float()

    def distance(self, features: Tensor, to_others: bool = False) -> Tensor:
        """Euclidean distance of each image's feature (N, d) to the nearest shot's, float64 (N,); 0 at a shot.

        to_others: the images are the shots themselves, and none is its own neighbour; infinite for a single one.
        """
        features = _checked(features, self.shots.shape[1])
        found: list[Tensor] = []
        for part in features.split(max(1, CHUNK // len(self.shots))):
            similarity = part.float() @ self._single.T - self._half
            if to_others:
                similarity.diagonal(sum(map(len, found))).fill_(-math.inf)
            best, nearest = similarity.max(1)
            distance = (part.double() - self.shots[nearest]).norm(dim=1)
            found.append(torch.where(best.isfinite(), distance, math.inf))
        return torch.cat(found)


class Gaussians:
    """One Gaussian a class with a common covariance, and one for all shots together, fitted to the shots.

        mahalanobis           min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c)                                     Lee et al. (2018), 1807.03888
        relative_mahalanobis  min_c (f − μ_c)ᵀ Σ⁻¹ (f − μ_c) − (f − μ₀)ᵀ Σ₀⁻¹ (f − μ₀)            Ren et al. (2021), 2106.09022

    Σ is the scatter of the shots about their class means, Σ₀ that about the mean of all. Both are shrunk towards a
    multiple of the identity by the oracle-approximating rule of Chen et al. (2010), arXiv 0907.4698, so they are
    invertible with fewer shots than features:

        Σ = (1 − ρ) S + ρ (tr S / d) I,   ρ = min(1, ((1 − 2/d) tr S² + (tr S)²) / ((ν + 1 − 2/d) (tr S² − (tr S)²/d)))

    with ν degrees of freedom (shots − classes for Σ, shots − 1 for Σ₀). With one shot a class nothing is known of Σ: it
    is then Σ₀ shrunk fully, a multiple of the identity (our choice; the order of `mahalanobis` does not depend on the
    multiple). ρ is at least 1e-6 (our choice), so many shots in a subspace do no harm.

    Args:
        shots: features of the shots (n, d).
        labels: their classes (n,), any integers.

    Raises:
        ValueError: wrong shapes, no shot, or a feature that is not finite.
    """

    def __init__(self, shots: Tensor, labels: Tensor) -> None:
        shots = _checked(shots, shots.shape[-1]).double()
        if labels.shape != (len(shots),):
            raise ValueError(f"{len(shots)} shots need as many labels, got {tuple(labels.shape)}")
        classes, index = labels.to(shots.device).unique(return_inverse=True)
        sums = torch.zeros(len(classes), shots.shape[1], dtype=torch.float64, device=shots.device)
        self.means = sums.index_add_(0, index, shots) / index.bincount()[:, None]
        self.mean = shots.mean(0, keepdim=True)
        overall = shrunk(shots - self.mean, len(shots) - 1)
        freedom = len(shots) - len(classes)
        within = shrunk(shots - self.means[index], freedom) if freedom else _isotropic(overall)
        self._within, self._overall = (torch.linalg.cholesky(one) for one in (within, overall))
        self._white_means = _whitened(self._within, self.means)

    def scores(self, features: Tensor) -> dict[str, Tensor]:
        """{"mahalanobis", "relative_mahalanobis"} of features (N, d), float64 (N,) each."""
        features, means = _checked(features, self.means.shape[1]), self._white_means
        nearest, background = [], []
        for part in features.double().split(max(1, CHUNK // max(len(means), features.shape[1]))):
            white = _whitened(self._within, part)
            closest = (white @ means.T - 0.5 * means.square().sum(1)).argmax(1)
            nearest.append((white - means[closest]).square().sum(1))
            background.append(_whitened(self._overall, part - self.mean).square().sum(1))
        distance = torch.cat(nearest)
        return {"mahalanobis": distance, "relative_mahalanobis": distance - torch.cat(background)}


def shrunk(residuals: Tensor, freedom: int) -> Tensor:
    """The covariance (d, d) of centred residuals (n, d), shrunk as `Gaussians` says; the identity where all are 0."""
    width = residuals.shape[1]
    covariance = residuals.T @ residuals / max(freedom, 1)
    trace, square = covariance.trace(), covariance.square().sum()
    eye = torch.eye(width, dtype=residuals.dtype, device=residuals.device)
    if trace <= 0:
        return eye
    spread = (freedom + 1 - 2 / width) * (square - trace.square() / width)
    wanted = (1 - 2 / width) * square + trace.square()
    rho = (wanted / spread).clamp(1e-6, 1) if freedom and spread > 0 else torch.ones_like(trace)
    return (1 - rho) * covariance + rho * trace / width * eye


def _isotropic(covariance: Tensor) -> Tensor:
    width = len(covariance)
    return covariance.trace() / width * torch.eye(width, dtype=covariance.dtype, device=covariance.device)


def _whitened(factor: Tensor, vectors: Tensor) -> Tensor:
    """L⁻¹ v for each row v of (N, d)."""
    return torch.linalg.solve_triangular(factor, vectors.T, upper=False).T


def _checked(features: Tensor, width: int) -> Tensor:
    """The features (N, width); ValueError for another shape, or where one is not finite."""
    features = features.detach()
    if features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features must have shape (N, {width}), got {tuple(features.shape)}")
    if not torch.isfinite(features.sum()) and not torch.isfinite(features).all():
        raise ValueError("a feature is not finite")
    return features
