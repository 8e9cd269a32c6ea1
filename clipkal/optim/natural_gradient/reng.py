"""RENG: the natural gradient of a loss that penalises its own gradient.

Paper (Gradient Regularized Natural Gradients, arXiv 2601.18420, the explicit variant, by "double back-propagation"):

    l_G(θ) = l(θ) + (ρ/2) ‖∇l(θ)‖²

Ours, with ℓ for l and g = ∇ℓ:

    ∇ℓ_G = g + ρ_k ∇²ℓ g                          `RENG._gradients`
    θ ← θ − lr F̃⁻¹ ∇ℓ_G                           `KFAC._step` (kfac.py)

The curvature F̃ is that of ℓ, as in `KFAC`; with ρ = 0 this is `KFAC`, bit for bit. The Hessian-vector product comes
from double backpropagation, exactly (`hessian_gradient`):

    ∇²ℓ g = ∇⟨∇ℓ, g⟩ with g held fixed

Also ours: the unit of ρ, and its warm-up from zero, without which gradient regularisation can hurt adaptive optimisers
(README of the authors' code of Zhao et al. 2022, arXiv 2202.03599, who penalise ‖∇ℓ‖, not squared).

Cost beyond `KFAC`: about one and a half forward and backward passes, and about twice the activation memory.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from clipkal.optim.model.layers import twice_differentiable
from clipkal.optim.natural_gradient.curvature import ByParameter
from clipkal.optim.natural_gradient.kfac import KFAC, Strength, Units, differentiate, squared_norm
from clipkal.optim.parallel.shards import Shards
from clipkal.settings import NonNegative, Steps, checked


class RENG(KFAC):
    """Natural gradient of ℓ + (ρ/2) ‖∇ℓ‖².

    Args:
        model, lr, **settings: as for `KFAC`.
        rho: ρ ≥ 0.
        rho_warmup: steps over which ρ grows from zero.
        units: of `damping` and `rho`; "relative" makes ‖ρ ∇²ℓ g‖ = rho ‖g‖ at the first regularised step, before
            warm-up.

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

    @property
    def _regularised(self) -> bool:
        return self.rho.in_units(self.steps) > 0

    def _forward_context(self) -> AbstractContextManager[None]:
        return twice_differentiable(self.model) if self._regularised else nullcontext()

    def _gradients(self, loss: Tensor, shards: Shards) -> tuple[ByParameter, ByParameter]:
        if not self._regularised:
            return super()._gradients(loss, shards)
        g, Hg = hessian_gradient(loss, list(self._names), shards)
        length = squared_norm(g.values()) ** 0.5
        rho = self.rho.at(self.steps, lambda: length / max(squared_norm(Hg.values()) ** 0.5, 1e-30))
        return g, {p: g[p] + rho * Hg[p] if p in Hg else g[p] for p in g}


def hessian_gradient(
    loss: Tensor, parameters: list[nn.Parameter], shards: Shards
) -> tuple[ByParameter, ByParameter]:
    """g = ∇ℓ and ∇²ℓ g of the whole batch, by differentiating ⟨∇ℓ, g⟩ with g held fixed.

    loss: this process's own. The Hessian is the mean over all images as well, so every process multiplies its own by
    the g of all of them.
    """
    graph = differentiate(loss, parameters, create_graph=True)
    g = shards.means({p: each.detach() for p, each in graph.items()})
    inner = sum(((graph[p] * g[p]).sum() for p in graph), torch.zeros((), device=loss.device))
    product = differentiate(inner, list(graph)) if inner.requires_grad else {}
    return g, shards.means(product)
