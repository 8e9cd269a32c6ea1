"""RING: gradient regularisation inside the update direction, as a damping that follows the gradient.

    λ_k = max(λ_min, ρ_k ‖g_k‖²)          θ ← θ − lr (F + λ_k I)⁻¹ g_k

Source: arXiv 2601.18420 (Gradient Regularized Natural Gradients, the implicit variant), from its
regularised quadratic model L + ∇Lᵀδ + ½ δᵀ (F + ρ ‖E[∇L]‖² I) δ, read in a review; algorithm and settings
could not be read. As printed there the expectation is over p(y | x, θ), under which the score has mean
zero; the mean gradient of the batch is used here. Far from the optimum the step is short and along the
gradient; near it λ_k falls to the floor λ_min = `damping`.

Our choices: the Kronecker split of λ_k and its refresh together with the inverses (`optim/curvature.py`;
with `update_interval` = 1 or solver "eigen" it follows every gradient, and "eigen" is (F + λ_k I)⁻¹
exactly), the floor, and the unit of ρ: "relative" makes λ_k = rho · (mean nonzero eigenvalue of F, see
`KFAC`) at the first regularised refresh, before warm-up (`optim/grad_norm.py`). With ρ = 0 this is `KFAC`,
bit for bit.

Cost: that of `KFAC`.
"""

from typing import Any

from torch import nn

from clipkal.optim.natural_gradient.kfac import KFAC, Evaluation
from clipkal.optim.natural_gradient.penalty import Rho, Units


class RING(KFAC):
    """Natural gradient damped by the squared gradient norm.

    Args:
        model, lr, **settings: as for `KFAC`; `damping` is the floor λ_min.
        rho: ρ ≥ 0.
        rho_warmup: steps over which ρ grows from zero.
        units: of `damping` and `rho`: "relative" or "absolute".
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        rho: float = 1.0,
        rho_warmup: int = 10,
        units: Units = "relative",
        **settings: Any,
    ):
        super().__init__(model, lr=lr, units=units, **settings)
        self.rho = Rho(rho, rho_warmup, units)

    def _damping(self, found: Evaluation) -> float:
        unit = self._unit(found)
        rho = self.rho.at(self.steps, lambda: unit / max(found.squared_norm, 1e-30))
        return max(super()._damping(found), rho * found.squared_norm)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "rho_unit": self.rho.unit}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.rho.unit = state["rho_unit"]
