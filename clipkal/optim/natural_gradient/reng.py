"""RENG: the natural gradient of a loss that penalises its own gradient.

Paper (Gradient Regularized Natural Gradients, arXiv 2601.18420, the explicit variant, by "double back-propagation"):

    l_G(θ) = l(θ) + (ρ/2) ‖∇l(θ)‖²

Ours, with ℓ for l and g = ∇ℓ:

    ∇ℓ_G = g + ρ_k ∇²ℓ g                          `RENG._gradients`
    θ ← θ − lr F̃⁻¹ ∇ℓ_G                           `KFAC._step` (kfac.py)

The curvature F̃ is that of ℓ, as in `KFAC`; with ρ = 0 this is `KFAC`, bit for bit. The Hessian-vector product comes
from double backpropagation, exact (`hessian_gradient`):

    ∇²ℓ g = ∇⟨∇ℓ, g⟩ with g held fixed

or from a finite difference (Zhao et al. 2022, arXiv 2202.03599, who penalise ‖∇ℓ‖, not squared), with an error of O(r)
and no second derivative (`RENG._difference`):

    ∇²ℓ g ≈ ‖g‖ (∇ℓ(θ + r g/‖g‖) − g) / r

Also ours: the unit of ρ, and its warm-up from zero, without which gradient regularisation can hurt adaptive optimisers
(README of the authors' code of arXiv 2202.03599).

Cost beyond `KFAC`: about one more forward and backward pass with the finite difference; with double backpropagation
about one and a half, and about twice the activation memory.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkal.optim.model.layers import twice_differentiable
from clipkal.optim.natural_gradient.curvature import ByParameter
from clipkal.optim.natural_gradient.kfac import KFAC, Strength, Units, differentiate, squared_norm
from clipkal.optim.parallel.shards import Shards
from clipkal.settings import NonNegative, Positive, Steps, checked


class RENG(KFAC):
    """Natural gradient of ℓ + (ρ/2) ‖∇ℓ‖².

    Args:
        model, lr, **settings: as for `KFAC`.
        rho: ρ ≥ 0.
        rho_warmup: steps over which ρ grows from zero.
        units: of `damping` and `rho`; "relative" makes ‖ρ ∇²ℓ g‖ = rho ‖g‖ at the first regularised step, before
            warm-up.
        hessian: "double_backprop" | "finite_difference". With the first, attention runs on the math kernel; with the
            second both passes see the same random numbers (dropout), and θ is put back bit for bit.
        radius: r of the finite difference, a distance in parameter space.

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
        hessian: Literal["double_backprop", "finite_difference"] = "double_backprop",
        radius: Positive = 1e-2,
        **settings: Any,
    ):
        super().__init__(model, lr=lr, units=units, **settings)
        self.rho = self.strengths["rho_unit"] = Strength(rho, units, rho_warmup)
        self.hessian, self.radius = hessian, radius
        self._random: list[Tensor] = []

    @property
    def _regularised(self) -> bool:
        return self.rho.in_units(self.steps) > 0

    @property
    def _cuda(self) -> list[torch.device]:
        return sorted({p.device for p in self._names if p.device.type == "cuda"}, key=str)

    def _forward_context(self) -> AbstractContextManager[None]:
        """Double backpropagation needs another forward pass; a finite difference the random numbers of this one."""
        if not self._regularised:
            return nullcontext()
        if self.hessian == "double_backprop":
            return twice_differentiable(self.model)
        self._random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]
        return nullcontext()

    def _gradients(
        self, loss: Tensor, shards: Shards, again: Callable[[], Tensor]
    ) -> tuple[ByParameter, ByParameter]:
        if not self._regularised:
            return super()._gradients(loss, shards, again)
        if self.hessian == "double_backprop":
            g, Hg = hessian_gradient(loss, list(self._names), shards)
        else:
            g = shards.means(differentiate(loss, list(self._names)))
            Hg = self._difference(g, lambda: shards.means(differentiate(again(), list(g))))
        length = squared_norm(g.values()) ** 0.5
        rho = self.rho.at(self.steps, lambda: length / max(squared_norm(Hg.values()) ** 0.5, 1e-30))
        return g, {p: g[p] + rho * Hg[p] if p in Hg else g[p] for p in g}

    def _difference(self, g: ByParameter, again: Callable[[], ByParameter]) -> ByParameter:
        """∇²ℓ g by a finite difference. again: evaluates ∇ℓ at the present parameters."""
        length = squared_norm(g.values()) ** 0.5
        if length == 0:
            return {p: torch.zeros_like(each) for p, each in g.items()}
        before = {p: p.detach().clone() for p in g}
        try:
            with torch.no_grad():
                for p, each in g.items():
                    p.add_(each, alpha=self.radius / length)
            with _replayed(self._random, self._cuda), torch.enable_grad():
                there = again()
        finally:
            with torch.no_grad():
                for p, value in before.items():
                    p.copy_(value)
        return {p: (there[p] - g[p]) * (length / self.radius) for p in there}


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


@contextmanager
def _replayed(states: list[Tensor], devices: list[torch.device]) -> Iterator[None]:
    """Replays the random numbers that followed `states` (CPU first); then puts the generators back."""
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(states[0])
        for device, state in zip(devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
        yield
