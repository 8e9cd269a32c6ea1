"""The MAP of x by Newton's method: the iterated extended Kalman filter, run to convergence.

    maximise  Ψ(x) = log p(y | Z⁰ + Φ x) − ½‖x‖²      (strictly concave)
    direction d:  (I + ΦᵀMΦ) d = Φᵀ(Y − π) − x = ∇Ψ,   x ← x + τ d

For a linear model and the softmax the Gauss–Newton matrix is the Hessian, so a Kalman update relinearised at the current x, a
natural-gradient step (Ollivier 2018, arXiv 1703.00209) and a Newton step are the same thing, and its fixed point is the mode of
Gaussian-process classification (GPML §3.5, Algorithm 3.3). τ comes from backtracking on Ψ (sufficient increase 1e-4): with a
strictly concave Ψ the iteration then converges from anywhere. The search costs no product: Φd is known, so Ψ(x + τd) needs a
softmax only.

The stopping rule is scale-free: δ² = ∇Ψᵀd is the squared distance to the MAP in posterior standard deviations, ‖x‖² is close to the
number of directions the data determine (MacKay's γ), so δ/‖x‖ is the typical error of a direction in its own standard deviations.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.full_kalman import likelihood
from clipkal.optim.full_kalman.descent import approach
from clipkal.optim.full_kalman.likelihood import Sites
from clipkal.optim.full_kalman.reduced import ReducedModel
from clipkal.optim.full_kalman.solve import Direct, conjugate_gradients

# Above this accuracy (δ/‖x‖) descent.py is cheaper, below it Newton's method.
HANDOVER = 0.01


@dataclass(frozen=True)
class Mode:
    """The MAP x [D], its logits [N, C] and sites there, Ψ(x), and what it cost."""

    x: Tensor
    logits: Tensor
    sites: Sites
    log_joint: float
    distance: float
    iterations: int
    products: int


def log_joint(model: ReducedModel, x: Tensor, logits: Tensor) -> float:
    """Ψ(x), the prior's constant left out."""
    return likelihood.log_likelihood(logits, model.labels) - 0.5 * float(x.double().square().sum())


def find_mode(
    model: ReducedModel, start: Tensor, tolerance: float, direct: bool, max_iterations: int = 50
) -> Mode:
    """Newton's method from `start` [D] until δ ≤ tolerance · max(1, ‖x‖) before the last step, or Ψ cannot be increased."""
    x, products = start, 1
    logits = model.logits(x)
    value, distance, first = log_joint(model, x, logits), float("inf"), None
    iterations = 0
    while iterations < max_iterations:
        iterations += 1
        sites = Sites.at(logits)
        gradient = model.adjoint(likelihood.residual(sites.probs, model.labels)) - x
        norm = float(gradient.norm())
        first = first or norm or 1.0
        forcing = min(0.5, max((norm / first) ** 0.5, 1e-12))
        direction, cost = _direction(model, sites, gradient, forcing, direct)
        distance = float((gradient * direction).double().sum().clamp(min=0.0).sqrt())
        products += cost + 2
        step = _line_search(model, x, logits, direction, value, distance)
        if step is None:
            break
        x, logits, value = step
        if distance <= tolerance * max(1.0, float(x.norm())):
            break
    return Mode(x, logits, Sites.at(logits), value, distance, iterations, products)


def _direction(
    model: ReducedModel, sites: Sites, gradient: Tensor, forcing: float, direct: bool
) -> tuple[Tensor, int]:
    if direct:
        return Direct.at(model, sites).solve(gradient), 0
    diagonal = model.precision_diagonal(sites)
    return conjugate_gradients(lambda v: model.precision(sites, v), gradient, diagonal, forcing)


def _line_search(
    model: ReducedModel, x: Tensor, logits: Tensor, direction: Tensor, value: float, distance: float
) -> tuple[Tensor, Tensor, float] | None:
    """The first τ in 1, ½, ¼, … that increases Ψ by at least 1e-4 τ δ²; None when rounding leaves nothing to gain."""
    change, step = model.forward(direction), 1.0
    slack = 4 * torch.finfo(x.dtype).eps * (1.0 + abs(value))
    for _ in range(30):
        new_x, new_logits = x + step * direction, logits + step * change
        new_value = log_joint(model, new_x, new_logits)
        if new_value >= value + 1e-4 * step * distance**2 - slack:
            return new_x, new_logits, new_value
        step *= 0.5
    return None


class WarmStart:
    """Modes of one problem at several amplitudes, each started from the one found at the nearest: √p₀ X and κ carry over.

    Counts what it costs.
    """

    def __init__(self, direct: bool):
        self.direct, self.iterations, self.products = direct, 0, 0
        self.found: dict[float, Tensor] = {}

    def mode(self, model: ReducedModel, tolerance: float) -> Mode:
        """The mode of `model`."""
        start, products = self._start(model), 0
        if not self.direct:
            start, logits, products = approach(
                model, start, tolerance if tolerance >= 0.1 * HANDOVER else HANDOVER
            )
        if self.direct or tolerance < 0.1 * HANDOVER:
            mode = find_mode(model, start, tolerance, self.direct)
        else:
            mode = Mode(start, logits, Sites.at(logits), log_joint(model, start, logits), tolerance, 0, 0)
        self.found[model.amplitude] = mode.x
        self.iterations += mode.iterations
        self.products += mode.products + products
        return mode

    def _start(self, model: ReducedModel) -> Tensor:
        if not self.found:
            return model.zeros()
        amplitude = min(self.found, key=lambda a: abs(math.log(a / model.amplitude)))
        x = self.found[amplitude].to(model.offset)
        start = x * (amplitude / model.amplitude)
        if model.scale_sd > 0:
            start[-1] = x[-1]
        return start
