"""P dense: the reference, for a few thousand parameters.

    gain form         S = I + H̃ P H̃ᵀ;  θ ← θ + P H̃ᵀ S⁻¹ r;  P ← P − P H̃ᵀ S⁻¹ H̃ P
    information form  P⁻¹ ← P⁻¹ + H̃ᵀ H̃;  θ ← θ + P⁺ H̃ᵀ r
The two are equal (Sherman–Morrison–Woodbury), and equal to Ollivier's natural gradient (arXiv 1703.00209).
Float64
throughout: in float32 the gain form loses 10 % of P in ill-conditioned cases.

Cost of a block of k outputs: gain k n² + k³, information n³. Memory: n² doubles.
"""

import torch
from torch import Tensor

from clipkal.optim.base import check_finite
from clipkal.optim.kalman.covariance.base import Covariance, class_cotangents
from clipkal.optim.kalman.innovation import Innovation, Weigher, innovate
from clipkal.optim.linalg import normal, psd_root, unit_cholesky
from clipkal.optim.model.jacobian import Jacobian
from clipkal.optim.model.measurement import Measurement
from clipkal.optim.model.parameters import ParameterVector


class Dense(Covariance):
    """n² numbers. form: gain | information, the same in exact arithmetic. largest: refuse more parameters than this."""

    def __init__(self, form: str = "gain", largest: int = 8192):
        if form not in ("gain", "information"):
            raise ValueError(f"form must be gain or information, got {form!r}")
        self.form, self.largest = form, largest

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        if vector.size > self.largest:
            raise ValueError(
                f"a dense covariance of {vector.size} parameters takes {8 * vector.size**2 / 2**30:.1f} GiB; "
                f"use diagonal, lowrank or kronecker, or raise `largest` from {self.largest}"
            )
        self.vector = vector
        self.P = torch.diag(prior.double())

    def update(self, jacobian: Jacobian, measurement: Measurement, weigher: Weigher) -> Innovation:
        rows = jacobian.rows(measurement).double()
        b, m, n = rows.shape
        H = rows.reshape(b * m, n)
        HP = H @ self.P
        innovation = innovate((HP @ H.mT).view(b, m, b, m), measurement, weigher)
        assert innovation.matrix is not None
        if self.form == "gain":
            delta = innovation.vector.reshape(-1) @ HP
            P = self.P - HP.mT @ innovation.matrix.reshape(b * m, b * m) @ HP
        else:
            DDH = innovation.weights.repeat_interleave(m)[:, None] * H
            P = torch.linalg.inv(torch.linalg.inv(self.P) + H.mT @ DDH)
            delta = P @ (measurement.residual.reshape(-1) @ DDH)
        check_finite(delta, "the change of the parameters")
        check_finite(P, "the covariance")
        self.vector.add_(delta)
        self.P = (P + P.mT) / 2
        return innovation

    def predict(self, fading: float, process_noise: float) -> None:
        self.P = self.P / fading
        self.P.diagonal().add_(process_noise)

    def shrink(self, precision: float) -> None:
        """P ← (I + λ P)⁻¹ P."""
        P = torch.cholesky_solve(self.P, unit_cholesky(precision * self.P))
        self.P = (P + P.mT) / 2

    def unshrink(self, precision: float) -> None:
        """P ← (I − λ P)⁻¹ P."""
        eye = torch.eye(len(self.P), dtype=self.P.dtype, device=self.P.device)
        P = torch.linalg.solve(eye - precision * self.P, self.P)
        check_finite(P, "the covariance")
        self.P = (P + P.mT) / 2

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, len(self.P)), self.P, generator) @ psd_root(self.P).mT

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        J = jacobian.pull(class_cotangents(jacobian)).double()
        return J @ self.P @ J.mT

    def tensors(self) -> dict[str, Tensor]:
        return {"P": self.P}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.P = tensors["P"]
