"""Robust gates: how much of one image's observation to believe, w ∈ [0, 1], acting as R ← R / w.

A gate sees only numbers formed with the *previous* noise R: computed with the new one an outlier hides
    itself. mahalanobis  d² = eᵀ S⁻¹ e   with S = H P Hᵀ + R of this image alone, before any weight residual
    e' R⁻¹ e = rᵀ r
The gates of arXiv 2511.01694 ("Mahalanobis-distance-based regulation") could not be read; hard and soft
gating against a χ² quantile are the textbook forms and our choice. IMQ is arXiv 2405.05646 (WoLF).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from clipkal.optim.naming import named


class Gate(ABC):
    """Weights of a block of images.

    quantile: of the χ² distribution with as many degrees of freedom as an observation has (C − 1 for the
        categorical one); the threshold. For a categorical observation rᵀr = 1/π_y − 1 is heavy-tailed, so
        far more than 1 − quantile of the images are gated while the model is still poor: use a high
        quantile.
    """

    active = True

    def __init__(self, quantile: float = 0.99):
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        self.quantile = quantile

    def threshold(self, dof: int) -> float:
        from scipy.stats import chi2  # slow to import

        return float(chi2.ppf(self.quantile, max(dof, 1)))

    @abstractmethod
    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        """w [b] from d² [b] and rᵀr [b], float64."""


class NoGate(Gate):
    """Believes everything: w = 1."""

    active = False

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return torch.ones_like(mahalanobis)


class MahalanobisHard(Gate):
    """w = 1 if d² ≤ c, else 0: the image is left out (its mean and covariance increments vanish)."""

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return (mahalanobis <= self.threshold(dof)).double()


class MahalanobisSoft(Gate):
    """w = min(1, c / d²): the noise of an outlier is inflated until it is about on the threshold."""

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return (self.threshold(dof) / mahalanobis.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1.0)


class InverseMultiQuadric(Gate):
    """w = 1 / (1 + rᵀr / c): WoLF (arXiv 2405.05646) with W² = w and c² the χ² quantile (our choice of c).

    Smooth and never zero, with a bounded influence of any one image on the posterior.
    """

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return 1 / (1 + residual / self.threshold(dof))


GATES: dict[str, type[Gate]] = {
    "none": NoGate,
    "mahalanobis_hard": MahalanobisHard,
    "mahalanobis_soft": MahalanobisSoft,
    "imq": InverseMultiQuadric,
}


def make_gate(gate: str | Gate) -> Gate:
    """A gate from its name in `GATES`, or the gate itself."""
    return named(gate, "gate", GATES)
