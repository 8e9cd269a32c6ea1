"""The linear model in the few coordinates the data can see.

With an orthonormal basis V_F [q, r] of the span of the features and V_T [p, t] of the span of the class-centred left factors, the
prior W ~ N(0, p₀ I) is white in the coordinates X = V_Fᵀ Wᵀ V_T / √p₀, and up to a shift common to all classes (which the softmax
does not see) the logits of the N seen images are

    Z = κ Z⁰ + √p₀ G X Aᵀ,    G = right V_F [N, r],   A = (centred left) V_T [C, t],   X ~ N(0, I) [r, t],
    κ = scale_mean + scale_sd k,  k ~ N(0, 1).

κ multiplies the zero-weight logits: the model is linear in it, so it is simply one more coordinate of the state. The unknown is
the flat vector x = (X, k) with D = r·t (+ 1) entries; r ≤ min(N, q), t ≤ min(C − 1, p). Everything else about W keeps its prior.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from clipkal.optim.full_kalman.likelihood import Sites


@dataclass(frozen=True)
class ReducedModel:
    """features G [N, r], classes A [C, t], offset Z⁰ [N, C], labels [N]; amplitude √p₀; κ ~ N(scale_mean, scale_sd²), fixed
    where scale_sd is 0."""

    features: Tensor
    classes: Tensor
    offset: Tensor
    labels: Tensor
    amplitude: float
    scale_sd: float
    scale_mean: float = 1.0

    @property
    def size(self) -> int:
        """D, the length of x."""
        return self.features.shape[1] * self.classes.shape[1] + (self.scale_sd > 0)

    @cached_property
    def scaled(self) -> Tensor:
        """√p₀ A [C, t]."""
        return self.amplitude * self.classes

    def with_amplitude(self, amplitude: float) -> "ReducedModel":
        return replace(self, amplitude=amplitude)

    def rows(self, keep: Tensor) -> "ReducedModel":
        """The same coordinates, fewer images: keep [N] is a mask."""
        return replace(self, features=self.features[keep], offset=self.offset[keep], labels=self.labels[keep])

    def to(self, dtype: torch.dtype) -> "ReducedModel":
        return replace(
            self,
            features=self.features.to(dtype),
            classes=self.classes.to(dtype),
            offset=self.offset.to(dtype),
        )

    def zeros(self) -> Tensor:
        return self.features.new_zeros(self.size)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [..., D] -> X [..., r, t], k [..., 1, 1] (None when κ is fixed)."""
        r, t = self.features.shape[1], self.classes.shape[1]
        k = x[..., r * t :, None] if self.scale_sd > 0 else None
        return x[..., : r * t].unflatten(-1, (r, t)) if r * t else x.new_zeros((*x.shape[:-1], r, t)), k

    def scale(self, x: Tensor) -> float:
        """κ at x [D]."""
        return self.scale_mean + (self.scale_sd * float(x[-1]) if self.scale_sd > 0 else 0.0)

    def logits(self, x: Tensor) -> Tensor:
        """Z [N, C] at x [D]."""
        return self.forward(x).add_(self.offset, alpha=self.scale_mean)

    def forward(self, x: Tensor) -> Tensor:
        """Φ x: the part of the logits linear in x, [..., N, C]. r(t + N)C multiply-adds for each x."""
        matrix, k = self.split(x)
        out = self.features @ (matrix @ self.scaled.T)
        return out if k is None else out.addcmul_(k, self.offset, value=self.scale_sd)

    def adjoint(self, values: Tensor) -> Tensor:
        """Φᵀ v [..., D] of v [..., N, C]; the same cost."""
        flat = ((self.features.T @ values) @ self.scaled).flatten(-2)
        if self.scale_sd == 0:
            return flat
        k = self.scale_sd * (values.flatten(-2) @ self.offset.flatten())
        return torch.cat((flat, k[..., None]), -1)

    def precision(self, sites: Sites, x: Tensor) -> Tensor:
        """(I + Φᵀ M Φ) x [..., D]: the Gauss–Newton matrix, here the exact Hessian, of the negative log posterior."""
        return x + self.adjoint(sites.curvature(self.forward(x)))

    def precision_diagonal(self, sites: Sites) -> Tensor:
        """The diagonal of I + ΦᵀMΦ [D]: Σ_i G[i, a]² (Σ_c π A[c, b]² − (Σ_c π A[c, b])²); N·t(2C + r) multiply-adds."""
        mean = sites.probs @ self.classes
        variance = (sites.probs @ self.classes.square() - mean.square()).clamp_(min=0.0)
        diagonal = self.amplitude**2 * (self.features.square().T @ variance).flatten()
        if self.scale_sd > 0:
            k = self.scale_sd**2 * (self.offset * sites.curvature(self.offset)).sum()
            diagonal = torch.cat((diagonal, k[None]))
        return 1.0 + diagonal

    def precision_matrix(self, sites: Sites) -> Tensor:
        """I + ΦᵀMΦ [D, D], formed pair by pair of class coordinates: t² N r² / 2 multiply-adds instead of N C D²."""
        probs, r, t = sites.probs, self.features.shape[1], self.classes.shape[1]
        mean = probs @ self.scaled
        middle = torch.einsum("ic,ca,cb->iab", probs, self.scaled, self.scaled)
        middle -= mean[:, :, None] * mean[:, None, :]
        out = torch.eye(self.size, dtype=probs.dtype, device=probs.device)
        blocks = torch.zeros(r, t, r, t, dtype=probs.dtype, device=probs.device)
        for b in range(t):
            weighted = middle[:, b, : b + 1].T[:, :, None] * self.features
            block = (self.features.T @ weighted).permute(1, 2, 0)
            blocks[:, b, :, : b + 1] = block
            blocks[:, :b, :, b] = block[..., :b].transpose(1, 2)
        out[: r * t, : r * t] += blocks.view(r * t, r * t)
        if self.scale_sd > 0:
            column = self.adjoint(sites.curvature(self.scale_sd * self.offset))
            out[-1] += column
            out[:-1, -1] += column[:-1]
        return out
