"""P⁻¹ = δ I + (1/N) Γ ⊗ Λ for the matrix of a bilinear model, Λ = Σ_i f_i f_iᵀ and Γ = Σ_i leftᵀ R_i⁻¹ left.

K-FAC's approximation of the sum of the N Gauss–Newton matrices (Martens & Grosse 2015; Ritter et al. 2018
for the posterior), exact when there is one image, and when all images have the same R (linear–Gaussian
regression). With the eigenbases U_Γ, U_Λ, P is diagonal, P[a, b] = 1/(δ + γ_a λ_b / N), in the turned
coordinates U_Γᵀ W U_Λ. So one block is the diagonal filter's update there (bilinear.py): the mean moves by
the gain of the prior P, and then Γ and Λ take the block in. Process noise has no such form and is refused.

Cost of a block: the diagonal's, p² q + p q² for the turns, and two eigenproblems p³ + q³ every `interval`
blocks: take few, large blocks. Memory: 2 (p² + q²) + p q. Parameters outside the matrix keep a diagonal of
their own.
"""

import torch
from torch import Tensor

from clipkal.optim.base import check_finite
from clipkal.optim.kalman.covariance.base import Covariance
from clipkal.optim.kalman.covariance.bilinear import logit_covariance, logit_noise, solve_block
from clipkal.optim.kalman.innovation import Innovation, Weigher
from clipkal.optim.linalg import normal
from clipkal.optim.model.bilinear import BilinearJacobian
from clipkal.optim.model.jacobian import Jacobian
from clipkal.optim.model.measurement import Measurement
from clipkal.optim.model.parameters import ParameterVector


class Kronecker(Covariance):
    """State in float64: Γ [p, p], Λ [q, q], N, δ. interval: blocks between eigendecompositions."""

    def __init__(self, interval: int = 1):
        if interval < 1:
            raise ValueError(f"interval must be positive, got {interval}")
        self.interval = interval

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        self._check(vector)
        self.vector = vector
        p, q = vector.shapes["weight"]
        prior = prior.double()
        self.delta = 1 / vector.view(prior, "weight")[0, 0]
        self.gamma, self.lam = prior.new_zeros(p, p), prior.new_zeros(q, q)
        self.count, self.pending = prior.new_zeros(()), prior.new_zeros(())
        self.extra = vector.view(prior, "log_scale")[None].clone() if self._has_extra(vector) else prior[:0]
        self._decompose()

    @staticmethod
    def _has_extra(vector: ParameterVector) -> bool:
        return "log_scale" in vector.names

    @staticmethod
    def _check(vector: ParameterVector) -> None:
        if not set(vector.names) <= {"weight", "log_scale"} or len(vector.shapes.get("weight", ())) != 2:
            raise ValueError("covariance 'kronecker' is for bilinear models; use diagonal or lowrank")

    def _decompose(self) -> None:
        self.gamma_values, self.gamma_vectors = torch.linalg.eigh(self.gamma)
        self.lam_values, self.lam_vectors = torch.linalg.eigh(self.lam)
        self.pending = torch.zeros_like(self.pending)

    def _variance(self) -> Tensor:
        """P [p, q] in the turned coordinates."""
        gamma, lam = self.gamma_values.clamp(min=0), self.lam_values.clamp(min=0)
        return 1 / (self.delta + gamma[:, None] * lam / self.count.clamp(min=1e-300))

    def _turned(self, jacobian: Jacobian) -> BilinearJacobian:
        if not isinstance(jacobian, BilinearJacobian):
            raise ValueError("covariance 'kronecker' needs the bilinear route")
        left, right = jacobian.left.double(), jacobian.right.double()
        factors = left @ self.gamma_vectors, right @ self.lam_vectors, jacobian.extra.double()
        return BilinearJacobian(jacobian.logits, *factors, jacobian.vector)

    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        turned, P = self._turned(jacobian), self._variance()
        assert isinstance(jacobian, BilinearJacobian)
        block = solve_block(turned, P, self.extra, measurement, weigher)
        change = P * (block.direction.double().mT @ turned.right)
        weight = self.gamma_vectors @ change @ self.lam_vectors.mT
        check_finite(weight, "the change of the parameters")
        extra = self.extra * block.extra_direction
        left, right = jacobian.left, jacobian.right.double()
        whitened = measurement.pull(left) * block.innovation.weights.sqrt()[:, None, None]
        gamma = whitened.flatten(0, 1).mT @ whitened.flatten(0, 1)
        check_finite(gamma, "the curvature")
        self._move(weight, extra)
        self.extra = self.extra * (1 - (self.extra * block.extra_curvature).clamp(0, 1 - 1e-12))
        self.gamma = self.gamma + gamma
        self.lam = self.lam + right.mT @ right
        self.count = self.count + len(right)
        self.pending = self.pending + 1
        if int(self.pending) >= self.interval:
            self._decompose()
        return block.innovation

    def _move(self, weight: Tensor, extra: Tensor) -> None:
        parts = {"weight": weight, "log_scale": extra.sum()}
        self.vector.add_(self.vector.flatten(parts))

    def predict(self, fading: float, process_noise: float) -> None:
        if process_noise:
            raise ValueError("covariance 'kronecker' has no process noise: use fading memory")
        self.gamma, self.lam = self.gamma * fading, self.lam * fading
        self.gamma_values, self.lam_values = self.gamma_values * fading, self.lam_values * fading
        self.count, self.delta, self.extra = self.count * fading, self.delta * fading, self.extra / fading

    def shrink(self, precision: float) -> None:
        """δ ← δ + λ."""
        self.extra_before, self.delta_before = self.extra, self.delta
        self.delta = self.delta + precision
        self.extra = self.extra / (1 + precision * self.extra)

    def unshrink(self, precision: float) -> None:
        """δ ← δ − λ."""
        self.delta = self.delta_before
        self.extra = torch.minimum(1 / (1 / self.extra - precision).clamp(min=1e-300), self.extra_before)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        P = self._variance()
        noise = normal((n, *P.shape), P, generator) * P.sqrt()
        parts = {"weight": self.gamma_vectors @ noise @ self.lam_vectors.mT}
        if len(self.extra):
            parts["log_scale"] = (normal((n, 1), P, generator) * self.extra.sqrt())[:, 0]
        return self.vector.flatten(parts, leading=1)

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        return logit_covariance(self._turned(jacobian), self._variance(), self.extra)

    def logit_noise(self, jacobian: Jacobian, n: int, generator: torch.Generator | None) -> Tensor:
        noise = logit_noise(self._turned(jacobian), self._variance(), self.extra, n, generator)
        return noise.to(jacobian.logits.dtype)

    def tensors(self) -> dict[str, Tensor]:
        names = "gamma lam count pending delta extra gamma_values gamma_vectors lam_values lam_vectors"
        return {name: getattr(self, name) for name in names.split()}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            setattr(self, name, value)
