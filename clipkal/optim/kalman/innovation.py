"""The one solve of a Kalman update, in whitened coordinates: from B = H̃ P H̃ᵀ and r to gain and evidence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.kalman.gates import Gate
from clipkal.optim.linalg import log_det, unit_cholesky
from clipkal.optim.model.measurement import Measurement


@dataclass
class Innovation:
    """What a block of b images says, with D = diag(√w) and S = I + D B D.

    vector: a = D S⁻¹ D r [b, m]; the mean moves by K e = P H̃ᵀ a.
    matrix: D S⁻¹ D [b, m, b, m]; the covariance falls by P H̃ᵀ (D S⁻¹ D) H̃ P. None if it was not formed.
    log_evidence: Σ w log p(y | θ) + ½ rᵀD(I − S⁻¹)Dr − ½ log det S, a 0-dim float64 tensor.
    mahalanobis: d²/dof [b], of each image by itself where a gate asked for it, else its share of (Dr)ᵀS⁻¹Dr.
    weights: w [b]. moment: what ResidualNoise wants; None if no image was seen, or it was not asked for.
    seen: how many images have w > 0.
    """

    vector: Tensor
    matrix: Tensor | None
    log_evidence: Tensor
    mahalanobis: Tensor
    weights: Tensor
    moment: Tensor | None = None

    @property
    def seen(self) -> int:
        return int((self.weights > 0).sum())


@dataclass(frozen=True)
class Weigher:
    """The weight w of an image: the likelihood's power (1/E if E epochs are tempered) times its gate.

    adaptive: whether the noise wants `Innovation.moment`.
    """

    gate: Gate
    power: float = 1.0
    adaptive: bool = False

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        return self.power * self.gate.weights(mahalanobis, residual, dof)


def innovate(gram: Tensor, measurement: Measurement, weigher: Weigher) -> Innovation:
    """Solves S for gram = B [b, m, b, m] and r = measurement.residual [b, m]; (bm)³ flop, float64.

    The evidence is the exact log marginal likelihood of the linearised model: log N(e; 0, H P Hᵀ + R) where
    R is fixed, and for the categorical likelihood the log of ∫ N(θ; θ̄, P) p(y | θ) with log p expanded to
    its gradient and Gauss–Newton matrix (Laplace, MacKay 1992), since (Q r)ᵀ J P⁺ Jᵀ (Q r) = rᵀ(I − S⁻¹) r.
    It is not bounded by 0 for a discrete y: large positive values say that P is too wide for the
    linearisation.
    """
    b, m = measurement.residual.shape
    r = measurement.residual
    weights, mahalanobis = _weigh(gram, measurement, weigher)
    B, Dr = gram.reshape(b * m, b * m), r.reshape(-1)
    root = weights.sqrt().repeat_interleave(m) if weigher.gate.active or weigher.power != 1 else None
    if root is not None:
        B, Dr = root[:, None] * B * root, root * Dr
    factor = unit_cholesky(B)
    inverse = torch.cholesky_inverse(factor)
    alpha = inverse @ Dr
    if mahalanobis is None:
        mahalanobis = (alpha * Dr).view(b, m).sum(-1)
    evidence = weights.dot(measurement.log_likelihood) + (alpha.dot(B @ Dr) - log_det(factor)) / 2
    return Innovation(
        vector=(alpha if root is None else root * alpha).view(b, m),
        matrix=(inverse if root is None else root[:, None] * inverse * root).view(b, m, b, m),
        log_evidence=evidence,
        mahalanobis=mahalanobis / measurement.dof,
        weights=weights,
        moment=_moment(alpha.view(b, m), inverse, weights) if weigher.adaptive else None,
    )


def _weigh(gram: Tensor, measurement: Measurement, weigher: Weigher) -> tuple[Tensor, Tensor | None]:
    """w [b], and d² = rᵀ(I + B_ii)⁻¹r [b] if the gate needed it."""
    r = measurement.residual
    if not weigher.gate.active:
        return torch.full_like(r[:, 0], weigher.power), None
    blocks = gram.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [b, m, m]
    white = torch.linalg.solve_triangular(unit_cholesky(blocks), r[..., None], upper=False)
    mahalanobis = white[..., 0].square().sum(-1)
    return weigher.weights(mahalanobis, r.square().sum(-1), measurement.dof), mahalanobis


def _moment(alpha: Tensor, inverse: Tensor, weights: Tensor) -> Tensor | None:
    """The mean of ε_i ε_iᵀ + (H P⁺ Hᵀ)_i [m, m] over the images with w > 0, in units of R; None if there are none.

    D ε = S⁻¹ D r = α and D H̃ P⁺ H̃ᵀ D = I − S⁻¹, so both are divided by w.
    """
    b, m = alpha.shape
    blocks = inverse.view(b, m, b, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    posterior = torch.eye(m, dtype=alpha.dtype, device=alpha.device) - blocks
    seen = weights > 0
    parts = (alpha[:, :, None] * alpha[:, None, :] + posterior)[seen] / weights[seen][:, None, None]
    return parts.mean(0) if len(parts) else None


def summarise(innovations: list[Innovation], weigher: Weigher) -> tuple[float, dict[str, float]]:
    """The log evidence of all blocks, and the mean d²/dof and gate weight of their images."""
    metrics = {"mahalanobis": float(torch.cat([i.mahalanobis for i in innovations]).mean())}
    if weigher.gate.active:
        weights = torch.cat([i.weights for i in innovations]) / weigher.power
        metrics["gate_weight"] = float(weights.mean())
    return float(torch.stack([i.log_evidence for i in innovations]).sum()), metrics
