"""RENG: the natural gradient of a loss that penalises its own gradient.

    ℓ_ρ = ℓ + (ρ/2) ‖∇ℓ‖²          ∇ℓ_ρ = g + ρ ∇²ℓ g          θ ← θ − lr F̃⁻¹ ∇ℓ_ρ

Source: arXiv 2601.18420 (Gradient Regularized Natural Gradients, the explicit variant: "double
back-propagation"), read in summaries; its settings could not be read. The Hessian-vector product comes from

* double backpropagation: ∇⟨∇ℓ, g⟩ with g held fixed, exact; attention runs on the math kernel (`optim/sdpa.py`); or
* a finite difference (Zhao et al. 2022, arXiv 2202.03599): ∇²ℓ g ≈ ‖g‖ (∇ℓ(θ + r g/‖g‖) − g) / r, error
  O(r); a second forward and backward pass under the same random numbers (dropout), no second derivative
  needed; θ is put back bit for bit.

The curvature F̃ is that of ℓ, as in `KFAC`; with ρ = 0 this is `KFAC`, bit for bit. Our choices: ρ warms up
from zero and is a pure number by default (`optim/grad_norm.py`): "relative" makes ‖ρ ∇²ℓ g‖ = ρ ‖g‖ on the
first regularised step.

Cost beyond `KFAC`: about one more forward and backward pass with the finite difference; with double
backpropagation about one and a half, and about twice the activation memory.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkal.optim.base import StepInfo
from clipkal.optim.curvature import Values
from clipkal.optim.deal import Deal
from clipkal.optim.grad_norm import Rho, Units, squared_norm
from clipkal.optim.kfac import KFAC, differentiate
from clipkal.optim.sdpa import twice_differentiable


class RENG(KFAC):
    """Natural gradient of ℓ + (ρ/2) ‖∇ℓ‖².

    Args:
        model, lr, **settings: as for `KFAC`.
        rho: ρ ≥ 0.
        rho_warmup: steps over which ρ grows from zero.
        units: of `damping` and `rho`; "relative" measures ρ in ‖g‖ / ‖∇²ℓ g‖ of the first regularised step.
        hessian: "double_backprop" | "finite_difference".
        radius: r of the finite difference, a distance in parameter space.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,
        rho: float = 1.0,
        rho_warmup: int = 10,
        units: Units = "relative",
        hessian: Literal["double_backprop", "finite_difference"] = "double_backprop",
        radius: float = 1e-2,
        **settings: Any,
    ):
        if hessian not in ("double_backprop", "finite_difference"):
            raise ValueError(f"hessian must be 'double_backprop' or 'finite_difference', not {hessian!r}")
        if not 0 < radius < float("inf"):
            raise ValueError(f"radius must be positive, not {radius}")
        super().__init__(model, lr=lr, units=units, **settings)
        self.rho, self.hessian, self.radius = Rho(rho, rho_warmup, units), hessian, radius
        self._random: list[Tensor] = []

    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        if self._regularised and self.hessian == "finite_difference":
            self._random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]
        return super().step(inputs, targets)

    @property
    def _regularised(self) -> bool:
        return self.rho.fraction(self.steps) > 0

    @property
    def _cuda(self) -> list[torch.device]:
        return sorted({p.device for p in self._names if p.device.type == "cuda"}, key=str)

    def _forward_guard(self) -> AbstractContextManager[None]:
        twice = self._regularised and self.hessian == "double_backprop"
        return twice_differentiable(self.model) if twice else nullcontext()

    def _gradients(self, loss: Tensor, deal: Deal, again: Callable[[], Tensor]) -> tuple[Values, Values]:
        if not self._regularised:
            return super()._gradients(loss, deal, again)
        if self.hessian == "double_backprop":
            g, Hg = hessian_gradient(loss, list(self._names), deal)
        else:
            g = deal.means(differentiate(loss, list(self._names)))
            Hg = self._difference(g, lambda: deal.means(differentiate(again(), list(g))))
        length = squared_norm(g.values()) ** 0.5
        rho = self.rho.at(self.steps, lambda: length / max(squared_norm(Hg.values()) ** 0.5, 1e-30))
        return g, {p: g[p] + rho * Hg[p] if p in Hg else g[p] for p in g}

    def _difference(self, g: Values, again: Callable[[], Values]) -> Values:
        """‖g‖ (∇ℓ(θ + r g/‖g‖) − g) / r. again: evaluates ∇ℓ at the present parameters."""
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

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "hessian": self.hessian}

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "rho_unit": self.rho.unit}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.rho.unit = state["rho_unit"]


def hessian_gradient(loss: Tensor, parameters: list[nn.Parameter], deal: Deal) -> tuple[Values, Values]:
    """g = ∇ℓ and ∇²ℓ g of the whole batch, by differentiating ⟨∇ℓ, g⟩ with g held fixed.

    loss: this process's own. The Hessian is the mean over all images as well, so every process multiplies its own by
    the g of all of them.
    """
    graph = differentiate(loss, parameters, create_graph=True)
    g = deal.means({p: each.detach() for p, each in graph.items()})
    inner = sum(((graph[p] * g[p]).sum() for p in graph), torch.zeros((), device=loss.device))
    product = differentiate(inner, list(graph)) if inner.requires_grad else {}
    return g, deal.means(product)


@contextmanager
def _replayed(states: list[Tensor], devices: list[torch.device]) -> Iterator[None]:
    """Replays the random numbers that followed `states` (CPU first); then puts the generators back."""
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(states[0])
        for device, state in zip(devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
        yield
