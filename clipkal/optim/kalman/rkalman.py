"""`rkalman`: the gradient-regularised Kalman filter."""

from typing import Any

from torch import nn

from clipkal.optim.kalman.online import OnlineKalman


class RKalman(OnlineKalman):
    """R-Kalman of Gradient Regularized Natural Gradients (arXiv 2601.18420): λ_k = ρ‖HᵀR⁻¹e‖² shrinks P first.

    The paper's equations could not be read: P̃ = (P⁻¹ + λ_k I)⁻¹ follows from its objective ℓ + ρ/2 ‖∇ℓ‖²,
    and equals a pseudo-observation θ_k = θ_{k−1} + N(0, I/λ_k). Ours: all of `OnlineKalman`, ρ relative to the first
    batch, and λ_k used for the gain only (store_regularisation=True keeps it in P, which then loses plasticity for
    good).
    """

    def __init__(self, model: nn.Module, rho: float = 0.1, **settings: Any):
        ours = {"rho": rho, "rho_as": "relative", "store_regularisation": False}
        super().__init__(model, **{**ours, **settings})
