"""One Kalman update, in whitened coordinates where the noise is I: from B = H̃ P H̃ᵀ and r to gain, covariance and evidence.

    r = R^-½ (y − ŷ) [b, m]      H̃ = Qᵀ J [b, m, n]      J = ∂logits/∂θ [b, C, n],  Q = (R^-½ ∂ŷ/∂logits)ᵀ [b, C, m]
    S = I + D B D                D = diag(√w), the weights of the images
    K e = P H̃ᵀ a                 a = D S⁻¹ D r            `Innovation.vector`
    P⁺  = P − P H̃ᵀ M H̃ P         M = D S⁻¹ D              `Innovation.matrix`

S has no eigenvalue below 1, so that its Cholesky factor exists however wide P is. What is observed, and with which noise
R, is in observation.py and, for the categorical likelihood, in categorical.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.base import check_classes

if TYPE_CHECKING:
    from clipkal.optim.kalman.observation import Gate, Noise

LOWEST_LOG_PROBABILITY = -600.0
"""exp(½·600) and its square stay finite in float64."""


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
        pull: Callable[[Tensor], Tensor] = lambda X: self.pull(X.reshape(b, C, -1)).reshape(b * m, -1).mT
        push: Callable[[Tensor], Tensor] = lambda X: self.push(X.reshape(b, m, -1)).reshape(b * C, -1).mT
        found = self.condition(pull(pull(K)), weigher)
        vector = self.push(found.vector[..., None])[..., 0]
        return replace(found, vector=vector, matrix=push(push(found.matrix)))

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


class Observation(ABC):
    """What is observed of an image, given its logits [C]; the docstring of a model states ŷ, y and R.

    scalar: whether m = 1; otherwise m = C.
    ratio, iterated_ratio: defaults of the ratio rule for updates that are linearised once and for iterated ones.
    default_noise: the word of the noise it has where none is named.
    of_softmax: whether ŷ saturates where the model is sure, so that the ratio alone could ask for any P₀.
    """

    scalar = False
    of_softmax = False
    ratio = iterated_ratio = 0.4
    default_noise = "residual"

    def attach(self, model: nn.Module) -> None:  # noqa: B027
        """Takes from the model what the observation needs to know of it."""

    def check_noise(self, noise: "Noise") -> None:  # noqa: B027
        """Raises ValueError if this observation cannot go with the noise."""

    def check_targets(self, logits: Tensor, targets: Tensor) -> None:
        """Raises ValueError unless logits are [B, C] and targets int64 [B] in 0…C − 1; real [B, …] for regression."""
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        if logits.ndim != 2 or len(logits) != len(targets) or not len(targets):
            raise ValueError(f"need logits [B, C] and B targets, got {shapes}")
        self._check_values(logits, targets)

    def _check_values(self, logits: Tensor, targets: Tensor) -> None:
        check_classes(logits)
        if targets.dtype != torch.int64 or targets.ndim != 1:
            raise ValueError(f"targets must be int64 [B], got {targets.dtype} {tuple(targets.shape)}")
        lowest, highest = (int(t) for t in targets.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise ValueError(f"targets must lie in 0…{logits.shape[1] - 1}")

    @abstractmethod
    def outputs(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """e = y − ŷ [b, m], (∂ŷ/∂logits)ᵀ [b, C, m], and the model's own variances [b, m] where it has them."""

    def first_variance(self, logits: Tensor, targets: Tensor) -> Tensor:
        """R₀ of a noise that is to be estimated: the mean of e² over the first batch.

        The e of a softmax output vanishes where the model is sure and right: there one more image counts, of which the
        model knows nothing (logits 0). Ours: without it a first batch of one such image makes outliers of all others.
        """
        squares: Callable[[Tensor], Tensor] = lambda z: self.outputs(z, targets)[0].square().mean()
        if not self.of_softmax:
            return squares(logits)
        return (len(logits) * squares(logits) + squares(torch.zeros_like(logits))) / (len(logits) + 1)

    def measure(self, logits: Tensor, targets: Tensor, noise: "Noise") -> Measurement:
        """Whitened measurement of logits [b, C] (any dtype)."""
        error, columns, variance = self.outputs(logits.double(), targets)
        residual, columns, log_det = noise.whiten(error, columns, variance)
        m = error.shape[1]
        log_likelihood = -(residual.square().sum(-1) + log_det + m * math.log(2 * math.pi)) / 2
        return Measurement(residual, log_likelihood, m, columns)

    def reference(self, logits: Tensor, targets: Tensor, noise: "Noise") -> Measurement:
        """The measurement against which the ratio rule sets P₀: mean of diag(H P₀ Hᵀ)/R₀ over outputs."""
        return self.measure(logits, targets, noise)

    def loss(self, logits: Tensor, targets: Tensor, measurement: Measurement) -> Tensor:
        """What a step reports: mean cross-entropy of the batch."""
        return F.cross_entropy(logits.double(), targets)


@dataclass(frozen=True)
class Weigher:
    """The weight w of an image: the likelihood's power (1/E if E epochs are tempered) times its gate.

    adaptive: whether the noise wants `Innovation.moment`.
    """

    gate: "Gate"
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
