"""One Kalman update, in whitened coordinates where the noise is I: from B = H̃ P H̃ᵀ and r to gain, covariance and evidence.

    r = R^-½ (y − ŷ) [b, m]      H̃ = Qᵀ J [b, m, n]      J = ∂logits/∂θ [b, C, n],  Q = (R^-½ ∂ŷ/∂logits)ᵀ [b, C, m]
    S = I + D B D                D = diag(√w), the weights of the images
    K e = P H̃ᵀ a                 a = D S⁻¹ D r            `Innovation.vector`
    P⁺  = P − P H̃ᵀ M H̃ P         M = D S⁻¹ D              `Innovation.matrix`

S has no eigenvalue below 1, so that its Cholesky factor exists however wide P is. A gate says how much of one image's
observation to believe, w ∈ [0, 1], acting as R ← R / w. It sees numbers formed with the *previous* noise R only, since
computed with the new one an outlier hides itself:

    mahalanobis   d² = eᵀ S⁻¹ e      with S = H P Hᵀ + R of this image alone, before any weight
    residual      eᵀ R⁻¹ e = rᵀ r
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from scipy.stats import chi2
from torch import Tensor

from clipkal.settings import checked

LOWEST_LOG_PROBABILITY = -600.0
"""exp(½·600) and its square stay finite in float64."""
Quantile = Annotated[float, Field(gt=0, lt=1)]


@dataclass
class Innovation:
    """What a block of b images says.

    vector: a [b, m], for the rows that were solved in.
    matrix: M [bm, bm].
    log_evidence: Σ w log p(y | θ) + ½ rᵀD(I − S⁻¹)Dr − ½ log det S, a 0-dim float64 tensor.
    mahalanobis: d²/dof [b], of each image by itself where a gate asked for it, else its share of (Dr)ᵀS⁻¹Dr.
    weights: w [b].
    moment: what an estimated noise wants; None if no image was seen, or it was not asked for.
    """

    vector: Tensor
    matrix: Tensor
    log_evidence: Tensor
    mahalanobis: Tensor
    weights: Tensor
    moment: Tensor | None = None

    @property
    def seen(self) -> int:
        """How many images have w > 0."""
        return int((self.weights > 0).sum())

    def root(self) -> Tensor:
        """X [bm, bm] with X Xᵀ = M."""
        return psd_root(self.matrix)


@dataclass
class Measurement:
    """A block of b images as whitened linear measurements of their logits, float64.

    residual: r [b, m].
    log_likelihood: log p(y | θ) [b].
    dof: degrees of freedom of r.
    columns: Q [b, C, m].
    """

    residual: Tensor
    log_likelihood: Tensor
    dof: int
    columns: Tensor

    def pull(self, x: Tensor) -> Tensor:
        """Qᵀ x [b, m, l], float64, of x [C, l], common to the images, or [b, C, l]."""
        return self.columns.mT @ x.double()

    def push(self, x: Tensor) -> Tensor:
        """Q x [b, C, l] of x [b, m, l]."""
        return self.columns @ x

    def cotangents(self) -> Tensor:
        """Q [b, C, m]."""
        return self.columns

    def score(self) -> Tensor:
        """Q r [b, C]: the gradient of the log-likelihood with respect to the logits."""
        return self.push(self.residual[..., None])[..., 0]

    def condition(self, B: Tensor, weigher: "Weigher") -> Innovation:
        """Solves S for B [bm, bm] = H̃ P H̃ᵀ; (bm)³ flop, float64.

        The evidence is the exact log marginal likelihood of the linearised model: log N(e; 0, H P Hᵀ + R) where
        R is fixed, and for the categorical likelihood the log of ∫ N(θ; θ̄, P) p(y | θ) with log p expanded to
        its gradient and Gauss–Newton matrix (Laplace, MacKay 1992), since (Q r)ᵀ J P⁺ Jᵀ (Q r) = rᵀ(I − S⁻¹) r.
        It is not bounded by 0 for a discrete y: large positive values say that P is too wide for the
        linearisation.
        """
        b, m = self.residual.shape
        r = self.residual
        weights, mahalanobis = self._weigh(B, weigher)
        Dr = r.reshape(-1)
        root = weights.sqrt().repeat_interleave(m) if weigher.gate.active or weigher.power != 1 else None
        if root is not None:
            B, Dr = root[:, None] * B * root, root * Dr
        factor = unit_cholesky(B)
        inverse = torch.cholesky_inverse(factor)
        alpha = inverse @ Dr
        if mahalanobis is None:
            mahalanobis = (alpha * Dr).view(b, m).sum(-1)
        evidence = weights.dot(self.log_likelihood) + (alpha.dot(B @ Dr) - log_det(factor)) / 2
        return Innovation(
            vector=(alpha if root is None else root * alpha).view(b, m),
            matrix=inverse if root is None else root[:, None] * inverse * root,
            log_evidence=evidence,
            mahalanobis=mahalanobis / self.dof,
            weights=weights,
            moment=_moment(alpha.view(b, m), inverse, weights) if weigher.adaptive else None,
        )

    def _weigh(self, B: Tensor, weigher: "Weigher") -> tuple[Tensor, Tensor | None]:
        """w [b], and d² = rᵀ(I + B_ii)⁻¹r [b] if the gate needed it."""
        r = self.residual
        if not weigher.gate.active:
            return torch.full_like(r[:, 0], weigher.power), None
        factor = unit_cholesky(diagonal_blocks(B, len(r)))
        white = torch.linalg.solve_triangular(factor, r[..., None], upper=False)
        mahalanobis = white[..., 0].square().sum(-1)
        return weigher.weights(mahalanobis, r.square().sum(-1), self.dof), mahalanobis

    # The same where J_i = left ⊗ f_i, whose rows are solved in as suits the measurement (model/bilinear.py)

    def rows_of(self, left: Tensor) -> Tensor | None:
        """The rows h [b, k, p] that `condition_rows` observes, for left [C, p]; None: `left` itself, for every image.

        Here Qᵀ left for few outputs; beyond C/2 the logits are cheaper.
        """
        return self.pull(left) if self._few else None

    def condition_rows(self, K: Tensor, weigher: "Weigher", iterations: int) -> Innovation:
        """`condition` for K [bk, bk] of the rows that `rows_of` chose; a [b, k] and M [bk, bk] belong to them."""
        if self._few:
            return self.condition(K, weigher)
        b, C, m = self.columns.shape
        pull = lambda X: self.pull(X.reshape(b, C, -1)).reshape(b * m, -1).mT
        push = lambda X: self.push(X.reshape(b, m, -1)).reshape(b * C, -1).mT
        found = self.condition(pull(pull(K)), weigher)
        vector = self.push(found.vector[..., None])[..., 0]
        return replace(found, vector=vector, matrix=push(push(found.matrix)))

    def condition_factor(self, left: Tensor, u: Tensor, weigher: "Weigher") -> Innovation | None:
        """The same of the only image of a block, for u [p], where that can be done in p dimensions; else None.

        vector: leftᵀ a [1, p].
        matrix: diag(leftᵀ M left) [1, p].
        """
        return None

    @property
    def _few(self) -> bool:
        return 2 * self.columns.shape[2] < self.columns.shape[1]


def _moment(alpha: Tensor, inverse: Tensor, weights: Tensor) -> Tensor | None:
    """The mean of ε_i ε_iᵀ + (H P⁺ Hᵀ)_i [m, m] over the images with w > 0, in units of R; None if there are none.

    D ε = S⁻¹ D r = α and D H̃ P⁺ H̃ᵀ D = I − S⁻¹, so both are divided by w.
    """
    b, m = alpha.shape
    posterior = torch.eye(m, dtype=alpha.dtype, device=alpha.device) - diagonal_blocks(inverse, b)
    seen = weights > 0
    parts = (alpha[:, :, None] * alpha[:, None, :] + posterior)[seen] / weights[seen][:, None, None]
    return parts.mean(0) if len(parts) else None


# Gates


class Gate(ABC):
    """Weights of the images of a block.

    quantile: of the χ² distribution with as many degrees of freedom as an observation has (C − 1 for the
        categorical one); the threshold c. For a categorical observation rᵀr = 1/π_y − 1 is heavy-tailed, so
        far more than 1 − quantile of the images are gated while the model is still poor: use a high
        quantile.
    """

    active = True

    @checked
    def __init__(self, quantile: Quantile = 0.99):
        self.quantile = quantile

    def threshold(self, dof: int) -> float:
        """c for so many degrees of freedom."""
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


@dataclass(frozen=True)
class Weigher:
    """The weight w of an image: the likelihood's power (1/E if E epochs are tempered) times its gate.

    adaptive: whether the noise wants `Innovation.moment`.
    """

    gate: Gate
    power: float = 1.0
    adaptive: bool = False

    def weights(self, mahalanobis: Tensor, residual: Tensor, dof: int) -> Tensor:
        """w [b] from d² [b] and rᵀr [b], float64."""
        return self.power * self.gate.weights(mahalanobis, residual, dof)


# Small dense algebra, float64


def diagonal_blocks(matrix: Tensor, b: int) -> Tensor:
    """The blocks [b, m, m] of the single images on the diagonal of a matrix [bm, bm]."""
    m = len(matrix) // b
    return matrix.reshape(b, m, b, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def unit_cholesky(gram: Tensor) -> Tensor:
    """Lower Cholesky factor of I + B for B [..., k, k] positive semi-definite up to rounding; float64.

    Only the lower triangle of B is read, so the factored matrix is symmetric by construction.

    Its eigenvalues are at least 1 in exact arithmetic, so the factorisation can only fail when rounding in
    B, some 1e-16 ‖B‖, exceeds 1; then that much is added to the diagonal (three times, tenfold), which only
    inflates the noise. Raises FloatingPointError if B is not finite. k³/3 flop.
    """
    S = gram.to(torch.float64, copy=True)
    S.diagonal(dim1=-2, dim2=-1).add_(1.0)
    factor, info = torch.linalg.cholesky_ex(S)
    if not (info.any() if info.ndim else info):
        return factor
    if not torch.isfinite(S).all():
        raise FloatingPointError("the innovation covariance is not finite; step refused")
    scale = S.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None]
    for jitter in (1e-14, 1e-13, 1e-12):
        S.diagonal(dim1=-2, dim2=-1).add_(jitter * scale)
        factor, info = torch.linalg.cholesky_ex(S)
        if not info.any():
            return factor
    raise FloatingPointError("the innovation covariance is not positive definite; step refused")


def log_det(cholesky: Tensor) -> Tensor:
    """log det(L Lᵀ) of a lower factor L [..., k, k]."""
    return 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def psd_root(matrix: Tensor) -> Tensor:
    """X [..., k, k] with X Xᵀ = matrix, symmetric positive semi-definite (negative rounding cut off); float64."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT).double() / 2)
    return vectors * values.clamp(min=0).sqrt()[..., None, :]
