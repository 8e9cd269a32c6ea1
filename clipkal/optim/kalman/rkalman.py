"""`rkalman`: the gradient-regularised Kalman filter, R-Kalman of Gradient Regularized Natural Gradients (arXiv 2601.18420).

    paper                                                  computed by
    ℓ_G(θ) = ℓ(θ) + ρ/2 ‖∇ℓ(θ)‖²                           the objective; no Fisher matrix is inverted

    ours, from it                                          computed by
    λ_k = ρ ‖H_kᵀ R_k⁻¹ e_k‖²  (= ρ ‖∇ℓ‖²)                 filter.py `KalmanFilter._predict`, `Jacobian.gradient_norm2`
    P̃  = (P⁻¹ + λ_k I)⁻¹;  diagonal: p̃ = p / (1 + λ_k p)   covariance/diagonal.py `Diagonal.shrink`
    θ ← θ + K e, P ← P̃ − K H P̃, with S and K of P̃          online.py says where
    P ← (P⁻¹ − λ_k I)⁻¹                                    covariance/diagonal.py `Diagonal.unshrink`

P̃ is exactly what a pseudo-observation θ_k = θ_{k−1} + N(0, I/λ_k) leaves. Ours too: all of `OnlineKalman`, ρ relative to the
first batch, and λ_k used for the gain only (store_regularisation=True keeps it in P, which then loses plasticity for good).
"""

from typing import Any, Literal

from torch import nn

from clipkal.optim.kalman.online import OnlineKalman
from clipkal.settings import NonNegative, Steps, checked


class RKalman(OnlineKalman):
    """R-Kalman (arXiv 2601.18420), reconstructed: λ_k = ρ‖HᵀR⁻¹e‖² shrinks P before the step of `OnlineKalman`.

    Args:
        model, settings: see `OnlineKalman`.
        rho, rho_as, warmup, store_regularisation: see `KalmanFilter`.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        rho: NonNegative = 0.1,
        rho_as: Literal["absolute", "relative"] = "relative",
        warmup: Steps = 0,
        store_regularisation: bool = False,
        **settings: Any,
    ):
        super().__init__(model, **settings)
        self.regularise(rho, rho_as, warmup, store_regularisation)
