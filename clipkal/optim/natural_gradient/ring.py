"""RING: gradient regularisation inside the update direction, as a damping that follows the gradient.

Paper (Gradient Regularized Natural Gradients, arXiv 2601.18420, the implicit variant), its quadratic model:

    L_G(θ + δ) = L + ∇Lᵀ δ + ½ δᵀ (F + ρ ‖E_{p(y|x,θ)}[∇L]‖² I) δ

Ours, with ℓ for L and g_k for the mean gradient of the batch:

    λ_k = max(λ_min, ρ_k ‖g_k‖²)                  `RING._damping`
    θ ← θ − lr (F + λ_k I)⁻¹ g_k                  `KFAC._step` (kfac.py)

As printed the paper's expectation is over p(y | x, θ), under which the score has mean zero; hence g_k. Far from the
optimum the step is short and along the gradient; near it λ_k falls to the floor λ_min = `damping`. Also ours: the
floor, the Kronecker split of λ_k and its refresh together with the inverses (curvature.py; with `update_interval` = 1
or solver "eigen" it follows every gradient, and "eigen" is (F + λ_k I)⁻¹ exactly), and the unit and warm-up of ρ.

With ρ = 0 this is `KFAC`, bit for bit. Cost: that of `KFAC`.
"""

from typing import Any

from torch import nn

from clipkal.optim.natural_gradient.kfac import KFAC, BatchGradient, Strength, Units
from clipkal.settings import NonNegative, Steps, checked


class RING(KFAC):
    """Natural gradient damped by the squared gradient norm.

    Args:
        model, lr, **settings: as for `KFAC`; `damping` is the floor λ_min.
        rho: ρ ≥ 0.
        rho_warmup: steps over which ρ grows from zero.
        units: of `damping` and `rho`: "relative" makes λ_k = rho · (mean nonzero eigenvalue of F, see `KFAC`) at the
            first regularised refresh, before warm-up; "absolute" takes both as they stand in the equations.

    Raises ValueError for a setting out of its range.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 1.0,
        rho: NonNegative = 1.0,
        rho_warmup: Steps = 10,
        units: Units = "relative",
        **settings: Any,
    ):
        super().__init__(model, lr=lr, units=units, **settings)
        self.rho = self.strengths["rho_unit"] = Strength(rho, units, rho_warmup)

    def _damping(self, found: BatchGradient) -> float:
        floor = super()._damping(found)
        rho = self.rho.at(self.steps, lambda: (self.damping.unit or 0.0) / max(found.squared_norm, 1e-30))
        return max(floor, rho * found.squared_norm)
