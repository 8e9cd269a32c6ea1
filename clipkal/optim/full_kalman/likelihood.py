"""The categorical likelihood in logits z [..., N, C] (C the number of classes): value, curvature and its square root.

    log p(y | z) = Σ_i z_i[y_i] − logsumexp(z_i),    ∂/∂z = Y − π,    −∂²/∂z² = M = diag(π) − π πᵀ = Q Qᵀ,
    Q = diag(√π) − π √πᵀ                                            (Q Qᵀ = M because Σπ = 1; checked in the tests)

Nothing here forms a C × C matrix: each product costs a few passes over [..., N, C]. Rasmussen & Williams, GPML §3.5.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    """Where the likelihood is linearised: probabilities π [N, C] and their curvature, M_i = diag(π_i) − π_i π_iᵀ for image i."""

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
