"""P⁻¹ = diag(υ) + W Wᵀ with W of rank L: LO-FI (Chang et al. 2023, arXiv 2305.19535), diagonal form.

    W̃ = [W, H̃ᵀ D]                       the exact posterior precision is υ + W̃ W̃ᵀ
    θ ← θ + P H̃ᵀ a                      P = υ⁻¹ − υ⁻¹ W (I + Wᵀ υ⁻¹ W)⁻¹ Wᵀ υ⁻¹, the gain of the prior P: no approximation
    W ← the L leading left singular directions of W̃
    υ ← υ + rowsum(dropped²)

What is dropped from W is kept on the diagonal, so every marginal precision is right. With L ≥ n nothing is
lost and this is the dense filter. The gain is written here with the prior P and S, which is the same thing as the paper's.

Cost of a block of k outputs: (L + k)² n flop, a (L + k) eigenproblem. Memory: (L + 1 + k) n.
"""

import torch
from torch import Tensor

from clipkal.optim.base import check_finite
from clipkal.optim.draws import normal
from clipkal.optim.kalman.covariance.diagonal import Covariance
from clipkal.optim.kalman.update import Innovation, Measurement, Weigher, unit_cholesky
from clipkal.optim.model.jacobian import Jacobian, ParameterVector, gram_matrix
from clipkal.settings import Steps, checked


class DiagonalPlusLowRank(Covariance):
    """State: υ [n] and Wᵀ [≤ L, n].

    rank: L, the most columns of W.
    """

    @checked
    def __init__(self, rank: Steps = 32):
        self.rank = rank

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        self.vector = vector
        self.diagonal = (1 / prior.double()).to(vector.dtype)  # υ
        self.rows = self.diagonal.new_zeros(0, vector.size)  # Wᵀ

    def _products(self, H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H P Hᵀ [k, k], the factor of I + Wᵀ υ⁻¹ W [L, L], and H υ⁻¹ W [k, L]; H [k, n]."""
        k = len(H)
        gram = gram_matrix(torch.cat([H, self.rows]), 1 / self.diagonal)
        factor = unit_cholesky(gram[k:, k:])
        HW = gram[:k, k:]
        return gram[:k, :k] - HW @ torch.cholesky_solve(HW.mT, factor), factor, HW

    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        rows = jacobian.rows(measurement).to(self.diagonal.dtype)
        H = rows.flatten(0, 1)
        gram, factor, HW = self._products(H)
        innovation = measurement.condition(gram, weigher)
        a = innovation.vector.reshape(-1)
        inner = torch.cholesky_solve((a @ HW)[:, None], factor)[:, 0]
        delta = (a.to(H.dtype) @ H - inner.to(H.dtype) @ self.rows) / self.diagonal
        check_finite(delta, "the change of the parameters")
        root = innovation.weights.sqrt().repeat_interleave(rows.shape[1]).to(H.dtype)
        diagonal, kept = self._compress(torch.cat([self.rows, root[:, None] * H]))
        check_finite(diagonal, "the precision")
        self.vector.add_(delta)
        self.diagonal, self.rows = diagonal, kept
        return innovation

    def _compress(self, tall: Tensor) -> tuple[Tensor, Tensor]:
        """υ and Wᵀ for W̃ᵀ [k, n]: its leading right singular rows, scaled; the rest goes to the diagonal."""
        if len(tall) <= self.rank:
            return self.diagonal, tall
        _, vectors = torch.linalg.eigh(gram_matrix(tall))  # ascending
        turned = vectors.mT.to(tall.dtype) @ tall
        dropped, kept = turned.split([len(tall) - self.rank, self.rank])
        return self.diagonal + dropped.square().sum(0), kept.contiguous()

    def predict(self, fading: float, process_noise: float) -> None:
        """Exactly P/λ + q I, in the same form (LO-FI's prediction).

        δ = υ⁻¹/λ + q
        υ ← 1/δ
        W ← (δ υ)⁻¹ W λ^-½ L⁻ᵀ,   L Lᵀ = I + q Wᵀ (υ δ)⁻¹ W.
        """
        delta = 1 / (fading * self.diagonal) + process_noise
        if len(self.rows):
            inner = gram_matrix(self.rows, process_noise / (self.diagonal * delta))
            factor = unit_cholesky(inner)
            turned = torch.linalg.solve_triangular(factor, self.rows.double(), upper=False)
            self.rows = turned.to(self.rows.dtype) / (self.diagonal * delta * fading**0.5)
        self.diagonal = 1 / delta

    def shrink(self, strength: float) -> None:
        """υ ← υ + λ."""
        self.before_shrink = self.diagonal
        self.diagonal = self.diagonal + strength

    def unshrink(self, strength: float) -> None:
        """υ ← υ − λ, and never below what it was."""
        self.diagonal = torch.maximum(self.diagonal - strength, self.before_shrink)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """υ^-½ (I + V Vᵀ)^-½ ε with V = υ^-½ W = U s Rᵀ.

        (I + V Vᵀ)^-½ = I − V R c Rᵀ Vᵀ
        c = (1 − (1 + s²)^-½)/s² = 1/(√(1 + s²)(1 + √(1 + s²))), which is harmless at s = 0.
        """
        noise = normal((n, len(self.diagonal)), self.diagonal, generator)
        scale = self.diagonal.rsqrt()
        if len(self.rows):
            V = self.rows * scale
            squares, R = torch.linalg.eigh(gram_matrix(V))
            root = (1 + squares.clamp(min=0)).sqrt()
            inner = ((R / (root * (1 + root))) @ R.mT).to(V.dtype)
            noise = noise - (noise @ V.mT) @ inner @ V
        return noise * scale

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        J = jacobian.logit_rows().to(self.diagonal.dtype)
        return torch.stack([self._products(image)[0] for image in J])

    def tensors(self) -> dict[str, Tensor]:
        return {"diagonal": self.diagonal, "rows": self.rows}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.diagonal, self.rows = tensors["diagonal"], tensors["rows"]
