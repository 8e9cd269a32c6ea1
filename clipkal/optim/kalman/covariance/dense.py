"""P dense: the reference, for a few thousand parameters.

    S = I + H̃ P H̃ᵀ;   θ ← θ + P H̃ᵀ S⁻¹ r;   P ← P − P H̃ᵀ S⁻¹ H̃ P

That equals the information form P⁻¹ ← P⁻¹ + H̃ᵀ H̃, θ ← θ + P⁺ H̃ᵀ r (Sherman–Morrison–Woodbury), and so Ollivier's natural
gradient (arXiv 1703.00209). Float64 throughout, since in float32 the gain form loses digits of P in ill-conditioned cases.

Cost of a block of k outputs: k n² + k³. Memory: n² doubles.
"""

import torch
from torch import Tensor

from clipkal.optim.base import check_finite
from clipkal.optim.draws import normal
from clipkal.optim.kalman.covariance.diagonal import Covariance
from clipkal.optim.kalman.update import Innovation, Measurement, Weigher, psd_root, unit_cholesky
from clipkal.optim.model.jacobian import Jacobian, ParameterVector
from clipkal.settings import Count, checked


class Dense(Covariance):
    """n² numbers.

    largest: refuse more parameters than this.
    """

    @checked
    def __init__(self, largest: Count = 8192):
        self.largest = largest

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        if vector.size > self.largest:
            raise ValueError(
                f"a dense covariance of {vector.size} parameters takes {8 * vector.size**2 / 2**30:.1f} GiB; "
                f"use diagonal or lowrank, or raise `largest` from {self.largest}"
            )
        self.vector = vector
        self.P = torch.diag(prior.double())

    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        H = jacobian.rows(measurement).double().flatten(0, 1)
        HP = H @ self.P
        innovation = measurement.condition(HP @ H.mT, weigher)
        delta = innovation.vector.reshape(-1) @ HP
        P = self.P - HP.mT @ innovation.matrix @ HP
        check_finite(delta, "the change of the parameters")
        check_finite(P, "the covariance")
        self.vector.add_(delta)
        self.P = (P + P.mT) / 2
        return innovation

    def predict(self, fading: float, process_noise: float) -> None:
        self.P = self.P / fading
        self.P.diagonal().add_(process_noise)

    def shrink(self, strength: float) -> None:
        """P ← (I + λ P)⁻¹ P."""
        P = torch.cholesky_solve(self.P, unit_cholesky(strength * self.P))
        self.P = (P + P.mT) / 2

    def unshrink(self, strength: float) -> None:
        """P ← (I − λ P)⁻¹ P."""
        eye = torch.eye(len(self.P), dtype=self.P.dtype, device=self.P.device)
        P = torch.linalg.solve(eye - strength * self.P, self.P)
        check_finite(P, "the covariance")
        self.P = (P + P.mT) / 2

    def trace(self) -> float:
        return float(self.P.trace())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, len(self.P)), self.P, generator) @ psd_root(self.P).mT

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        J = jacobian.logit_rows().double()
        return J @ self.P @ J.mT

    def tensors(self) -> dict[str, Tensor]:
        return {"P": self.P}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.P = tensors["P"]
