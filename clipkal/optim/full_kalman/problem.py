"""The problem in the few coordinates that the data can see: softmax likelihood, linear model, and the way there and back.

With an orthonormal basis V_F [q, r] of the span of the features and V_T [p, t] of the span of the class-centred left
factors, the prior W ~ N(0, p₀ I) is white in the coordinates X = V_Fᵀ Wᵀ V_T / √p₀. Up to a shift common to all classes,
which the softmax does not see, the logits of the N seen images are

    Z = Z⁰ + Φ x,   Φ x = √p₀ G X Aᵀ,   G = right V_F [N, r],   A = (centred left) V_T [C, t],   X ~ N(0, I) [r, t].

The unknown is the flat vector x of D = r·t entries; r ≤ min(N, q), t ≤ min(C − 1, p). Everything else about W keeps its
prior. The likelihood is categorical in the logits z (GPML §3.5):

    log p(y | z) = Σ_i z_i[y_i] − logsumexp(z_i),    ∂/∂z = Y − π,    −∂²/∂z² = M = diag(π) − π πᵀ = Q Qᵀ,
    Q = diag(√π) − π √πᵀ        (Q Qᵀ = M because Σπ = 1)

The prior is isotropic, so any orthonormal bases of the two spans will do for the mathematics. For conjugate gradients the
best ones diagonalise the two Kronecker factors of the Hessian's part Σ_i (G_i G_iᵀ) ⊗ (Aᵀ M_i A) at W = 0 (the idea of the
eigenvalue correction of Kronecker-factored curvature, George et al. 2018, arXiv 1806.03884):

    Σ_i w_i G_i G_iᵀ,   w_i = tr M_i = 1 − ‖π_i‖²            `_feature_rotation`
    Aᵀ (Σ_i M_i) A = Aᵀ (diag(Σπ_i) − Σ π_i π_iᵀ) A          `_class_rotation`
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float64", "float32"]

# Directions whose squared singular value is below this fraction of the largest are not in the span: leaving them at their
# prior changes the kernel by less than this fraction.
RANK_TOLERANCE = 1e-12
# From this many multiply-adds a product, N·C·r, on, the solves are float32 where the precision is "auto".
LARGE = 2**22


def log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Σ_i log softmax(z_i)[y_i] of logits [N, C]; the terms in their own precision, the sum in float64."""
    if not len(labels):
        return 0.0
    chosen = logits.gather(-1, labels[:, None])[:, 0]
    return float((chosen - torch.logsumexp(logits, -1)).double().sum())


def residual(probs: Tensor, labels: Tensor) -> Tensor:
    """Y − π [N, C], the gradient of the log-likelihood in the logits."""
    out = probs.neg()
    out[torch.arange(len(labels), device=labels.device), labels] += 1.0
    return out


@dataclass(frozen=True)
class Sites:
    """Where the likelihood is linearised. No product forms a C × C matrix: each is a few passes over [..., N, C].

    Attributes:
        probs: π [N, C], the probabilities; M_i = diag(π_i) − π_i π_iᵀ is the curvature at image i.
    """

    probs: Tensor

    @classmethod
    def at(cls, logits: Tensor) -> "Sites":
        """The sites at logits [N, C]."""
        return cls(logits.softmax(-1))

    def curvature(self, values: Tensor) -> Tensor:
        """M v = π∘v − π (πᵀv) for v [..., N, C]."""
        weighted = self.probs * values
        return weighted.addcmul_(self.probs, weighted.sum(-1, keepdim=True), value=-1.0)

    def root(self, values: Tensor) -> Tensor:
        """Q ε = √π∘ε − π (√πᵀε) for ε [..., N, C]: white noise of covariance I becomes noise of covariance M."""
        weighted = self.probs.sqrt() * values
        return weighted.addcmul_(self.probs, weighted.sum(-1, keepdim=True), value=-1.0)


@dataclass(frozen=True)
class ReducedModel:
    """The linear model Z = Z⁰ + Φ x, x ~ N(0, I), of the seen images.

    Attributes:
        features: G [N, r].
        classes: A [C, t].
        offset: Z⁰ [N, C], the logits at W = 0, centred over the classes.
        labels: y [N].
        amplitude: √p₀.
    """

    features: Tensor
    classes: Tensor
    offset: Tensor
    labels: Tensor
    amplitude: float

    @property
    def size(self) -> int:
        """D, the length of x."""
        return self.features.shape[1] * self.classes.shape[1]

    @cached_property
    def scaled(self) -> Tensor:
        """√p₀ A [C, t]."""
        return self.amplitude * self.classes

    def with_amplitude(self, amplitude: float) -> "ReducedModel":
        """The same data under another p₀."""
        return replace(self, amplitude=amplitude)

    def rows(self, keep: Tensor) -> "ReducedModel":
        """The same coordinates, fewer images: keep [N] is a mask."""
        return replace(self, features=self.features[keep], offset=self.offset[keep], labels=self.labels[keep])

    def others(self, right: Tensor, offset: Tensor, labels: Tensor, right_basis: Tensor) -> "ReducedModel":
        """Other images, right [M, q], offset [M, C], labels [M], in these coordinates.

        What of them V_F [q, r] does not span is at its prior.
        """
        offset = (offset - offset.mean(-1, keepdim=True)).to(self.offset)
        return replace(self, features=right.to(right_basis) @ right_basis, offset=offset, labels=labels)

    def to(self, dtype: torch.dtype) -> "ReducedModel":
        """The same model in another float type."""
        parts = {name: getattr(self, name).to(dtype) for name in ("features", "classes", "offset")}
        return replace(self, **parts)

    def zeros(self) -> Tensor:
        """x = 0 [D], the prior's mean."""
        return self.features.new_zeros(self.size)

    def matrix(self, x: Tensor) -> Tensor:
        """X [..., r, t] of x [..., D]."""
        r, t = self.features.shape[1], self.classes.shape[1]
        return x.unflatten(-1, (r, t)) if r * t else x.new_zeros((*x.shape[:-1], r, t))

    def logit_variance(self) -> float:
        """Prior variance of a centred logit at p₀ = 1, averaged over images and classes."""
        rows = self.features.double().square().sum() / max(1, len(self.labels))
        columns = self.classes.double().square().sum() / max(1, self.classes.shape[0])
        return max(float(rows * columns), 1e-30)

    def logits(self, x: Tensor) -> Tensor:
        """Z [N, C] at x [D]."""
        return self.forward(x).add_(self.offset)

    def forward(self, x: Tensor) -> Tensor:
        """Φ x: the part of the logits linear in x, [..., N, C]. r(t + N)C multiply-adds for each x."""
        return self.features @ (self.matrix(x) @ self.scaled.T)

    def adjoint(self, values: Tensor) -> Tensor:
        """Φᵀ v [..., D] of v [..., N, C]; the same cost."""
        return ((self.features.T @ values) @ self.scaled).flatten(-2)

    def hessian(self, sites: Sites, x: Tensor) -> Tensor:
        """H x = (I + ΦᵀMΦ) x [..., D], H the Gauss–Newton matrix and here the Hessian of the negative log posterior."""
        return x + self.adjoint(sites.curvature(self.forward(x)))

    def hessian_diagonal(self, sites: Sites) -> Tensor:
        """The diagonal of H [D]: Σ_i G[i, a]² (Σ_c π A[c, b]² − (Σ_c π A[c, b])²); N·t(2C + r) multiply-adds."""
        mean = sites.probs @ self.classes
        variance = (sites.probs @ self.classes.square() - mean.square()).clamp_(min=0.0)
        return 1.0 + self.amplitude**2 * (self.features.square().T @ variance).flatten()

    def hessian_matrix(self, sites: Sites) -> Tensor:
        """H [D, D], formed pair by pair of class coordinates: t² N r² / 2 multiply-adds instead of N C D²."""
        probs, r, t = sites.probs, self.features.shape[1], self.classes.shape[1]
        mean = probs @ self.scaled
        middle = torch.einsum("ic,ca,cb->iab", probs, self.scaled, self.scaled)
        middle -= mean[:, :, None] * mean[:, None, :]
        blocks = torch.zeros(r, t, r, t, dtype=probs.dtype, device=probs.device)
        for b in range(t):
            weighted = middle[:, b, : b + 1].T[:, :, None] * self.features
            block = (self.features.T @ weighted).permute(1, 2, 0)
            blocks[:, b, :, : b + 1] = block
            blocks[:, :b, :, b] = block[..., :b].transpose(1, 2)
        out = blocks.view(r * t, r * t)
        out.diagonal().add_(1.0)
        return out


def reduce(
    left: Tensor, right: Tensor, offset: Tensor, labels: Tensor, precision: Precision
) -> tuple[ReducedModel, Tensor, Tensor]:
    """The reduced model at p₀ = 1 of left [C, p], right [N, q], offset [N, C] and labels [N], with its two bases.

    These are V_F [q, r] and [V_T, u] [p, t + 1], u the unit vector of the mean left factor outside V_T. They are found in
    float64; model and bases are then of the float type that `precision` asks for ("auto": float64 unless it is large).
    """
    left, right = left.double(), right.double()
    mean = left.mean(0)
    centred = left - mean
    v_f, v_t = span(right), span(centred)
    large = offset.numel() * v_f.shape[1] >= LARGE
    dtype = torch.float32 if precision == "float32" or (precision == "auto" and large) else torch.float64
    offset = (offset - offset.mean(-1, keepdim=True)).to(dtype)
    probs = offset.softmax(-1)
    v_f = v_f @ _feature_rotation((right @ v_f).to(dtype), probs)
    v_t = v_t @ _class_rotation((centred @ v_t).to(dtype), probs)
    outside = mean - v_t @ (v_t.T @ mean)
    norm = outside.norm()
    unit = outside / norm if norm > 1e-10 * left.norm() else torch.zeros_like(outside)
    model = ReducedModel((right @ v_f).to(dtype), (centred @ v_t).to(dtype), offset, labels, 1.0)
    return model, v_f.to(dtype), torch.cat((v_t, unit[:, None]), 1).to(dtype)


def full_weight(model: ReducedModel, x: Tensor, right_basis: Tensor, left_basis: Tensor) -> Tensor:
    """W = √p₀ V_T Xᵀ V_Fᵀ [p, q] at x [D], for the bases that `reduce` gave."""
    matrix = model.matrix(x)
    return model.amplitude * left_basis[:, : matrix.shape[1]] @ matrix.T @ right_basis.T


def span(rows: Tensor) -> Tensor:
    """Orthonormal basis [q, r] of the row space of rows [n, q], from the smaller of the two Gram matrices; min(n, q)³ flop."""
    rows = rows.double()
    n, q = rows.shape
    if n == 0 or q == 0:
        return rows.new_zeros(q, 0)
    values, vectors = torch.linalg.eigh(rows @ rows.T if n < q else rows.T @ rows)
    keep = values > max(RANK_TOLERANCE * float(values[-1]), 0.0)
    vectors = vectors[:, keep]
    if n < q:
        vectors = torch.linalg.qr(rows.T @ (vectors / values[keep].sqrt()))[0]
    return vectors


def _feature_rotation(features: Tensor, probs: Tensor) -> Tensor:
    """Eigenvectors [r, r] of Σ_i w_i G_i G_iᵀ for G [N, r], π [N, C]."""
    weights = (1.0 - probs.square().sum(-1)).clamp(min=0.0)
    return _eigenvectors((features * weights[:, None]).T @ features)


def _class_rotation(classes: Tensor, probs: Tensor) -> Tensor:
    """Eigenvectors [t, t] of Aᵀ (Σ_i M_i) A for A [C, t], π [N, C]."""
    projected = probs @ classes
    return _eigenvectors((classes * probs.sum(0)[:, None]).T @ classes - projected.T @ projected)


def _eigenvectors(matrix: Tensor) -> Tensor:
    if not len(matrix):
        return matrix.double()
    return torch.linalg.eigh((0.5 * (matrix + matrix.T)).double())[1]
