"""The MAP of x: Newton's method, which is the iterated Kalman filter, and how to get near it when products are dear.

    maximise  Ψ(x) = log p(y | Z⁰ + Φ x) − ½‖x‖²      (strictly concave)

Paper (Bell & Cathey 1993; Ollivier 2018, arXiv 1703.00209; GPML Algorithm 3.3), `find_mode`:

    H d = Φᵀ(Y − π) − x = ∇Ψ,   H = I + ΦᵀMΦ        `solve`
    x ← x + τ d                                      `_line_search`

For a linear model and the softmax the Gauss–Newton matrix is the Hessian, so a Kalman update relinearised at the current x,
a natural-gradient step and a Newton step are the same thing, and its fixed point is the mode of Gaussian-process
classification. τ comes from backtracking on Ψ (sufficient increase 1e-4): with a strictly concave Ψ the iteration then
converges from anywhere. The search costs no product: Φd is known, so Ψ(x + τd) needs a softmax only.

Ours: the stopping rule is free of scale. δ² = ∇Ψᵀd is the squared distance to the MAP in posterior standard deviations,
‖x‖² is close to the number of directions the data determine (MacKay's γ), so δ/‖x‖ is the typical error of a direction in
its own standard deviations. Where no more than `HANDOVER` of that is asked for, preconditioned nonlinear conjugate
gradients are cheaper (`approach`):

    d ← P⁻¹∇Ψ + β d  (Polak–Ribière, β ≥ 0),   x ← x + τ d,   P = diag H

Along a line the logits are Z + τ Φd, so τ is found by Newton's method in one dimension without another product. An
iteration costs one forward and one adjoint product, no more than *one* step of the inner solver of Newton's method.

All eigenvalues of H are at least 1, so neither Cholesky nor conjugate gradients can fail for lack of definiteness.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.full_kalman.problem import ReducedModel, Sites, log_likelihood, residual

# Above this accuracy (δ/‖x‖) nonlinear conjugate gradients are cheaper, below it Newton's method.
HANDOVER = 0.01
# P is renewed every REFRESH iterations while the sites still move.
REFRESH, MOVING = 8, 25


@dataclass(frozen=True)
class PosteriorMode:
    """The MAP.

    Attributes:
        x: [D].
        logits: Z [N, C] at x.
        sites: π [N, C] at x.
        log_joint: Ψ(x).
        distance: δ before the last step.
        iterations: Newton steps taken.
        products: products with Φ or Φᵀ taken.
    """

    x: Tensor
    logits: Tensor
    sites: Sites
    log_joint: float
    distance: float
    iterations: int
    products: int


def log_joint(model: ReducedModel, x: Tensor, logits: Tensor) -> float:
    """Ψ(x), the prior's constant left out."""
    return log_likelihood(logits, model.labels) - 0.5 * float(x.double().square().sum())


# -- the linear systems of H -----------------------------------------------------------------------------------------


def hessian_factor(model: ReducedModel, sites: Sites) -> Tensor:
    """Lower Cholesky factor [D, D] of H; D³/3 multiply-adds."""
    return torch.linalg.cholesky(model.hessian_matrix(sites))


def solve(
    model: ReducedModel, sites: Sites, rhs: Tensor, factor: Tensor | None, tolerance: float
) -> tuple[Tensor, int]:
    """H⁻¹ rhs for rhs [..., D], and the number of products with H that it took.

    By the Cholesky factor where there is one, D² multiply-adds for each right-hand side; by conjugate gradients to
    `tolerance` otherwise.
    """
    if not model.size:
        return rhs, 0
    if factor is not None:
        flat = rhs.reshape(-1, rhs.shape[-1]).T
        return torch.cholesky_solve(flat, factor).T.reshape(rhs.shape), 0
    diagonal = model.hessian_diagonal(sites)
    return conjugate_gradients(lambda v: model.hessian(sites, v), rhs, diagonal, tolerance)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    rhs: Tensor,
    diagonal: Tensor,
    tolerance: float,
    max_iterations: int = 1000,
) -> tuple[Tensor, int]:
    """Solves A x = rhs for a batch of right-hand sides [..., D] at once; returns x and the number of products.

    product: x [..., D] -> A x. diagonal [D]: the preconditioner P. Stops when every residual is below tolerance · ‖rhs‖,
    both in the norm of P⁻¹. Each right-hand side has its own step lengths, so the batch shares products and nothing else.
    """
    x = torch.zeros_like(rhs)
    r = rhs.clone()
    z = r / diagonal
    p = z.clone()
    rz = (r * z).sum(-1, keepdim=True)
    target = tolerance**2 * rz
    tiny = torch.finfo(rhs.dtype).tiny
    for iteration in range(max_iterations):
        if bool((rz <= target).all()):
            return x, iteration
        ap = product(p)
        alpha = rz / (p * ap).sum(-1, keepdim=True).clamp(min=tiny)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, ap, value=-1.0)
        z = r / diagonal
        rz, old = (r * z).sum(-1, keepdim=True), rz
        p.mul_(rz / old.clamp(min=tiny)).add_(z)
    return x, max_iterations


# -- Newton's method -------------------------------------------------------------------------------------------------


def find_mode(
    model: ReducedModel, start: Tensor, tolerance: float, direct: bool, max_iterations: int = 50
) -> PosteriorMode:
    """Newton's method from `start` [D] until δ ≤ tolerance · max(1, ‖x‖) before the last step, or Ψ cannot be increased."""
    x, products = start, 1
    logits = model.logits(x)
    value, distance, first = log_joint(model, x, logits), float("inf"), None
    iterations = 0
    while iterations < max_iterations:
        iterations += 1
        sites = Sites.at(logits)
        gradient = model.adjoint(residual(sites.probs, model.labels)) - x
        norm = float(gradient.norm())
        first = first or norm or 1.0
        forcing = min(0.5, max((norm / first) ** 0.5, 1e-12))
        factor = hessian_factor(model, sites) if direct else None
        direction, cost = solve(model, sites, gradient, factor, forcing)
        distance = float((gradient * direction).double().sum().clamp(min=0.0).sqrt())
        products += cost + 2
        step = _line_search(model, x, logits, direction, value, distance)
        if step is None:
            break
        x, logits, value = step
        if distance <= tolerance * max(1.0, float(x.norm())):
            break
    return PosteriorMode(x, logits, Sites.at(logits), value, distance, iterations, products)


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


# -- nonlinear conjugate gradients -----------------------------------------------------------------------------------


def approach(
    model: ReducedModel, x: Tensor, tolerance: float, max_iterations: int = 200
) -> tuple[Tensor, Tensor, int]:
    """x [D] with √(∇Ψᵀ P⁻¹ ∇Ψ) ≤ tolerance · max(1, ‖x‖), its logits [N, C] and the number of products. 2·D + 3·N·C memory."""
    logits, products = model.logits(x), 1
    diagonal = direction = gradient = torch.ones_like(x)
    size = 0.0
    for iteration in range(max_iterations):
        probs = logits.softmax(-1)
        if iteration % REFRESH == 0 and iteration < MOVING:
            diagonal = model.hessian_diagonal(Sites(probs))
            products += 1
        old, before = gradient, size
        gradient = model.adjoint(residual(probs, model.labels)) - x
        steepest = gradient / diagonal
        size = float(gradient @ steepest)
        if size <= (tolerance * max(1.0, float(x.norm()))) ** 2:
            break
        beta = max(0.0, (size - float(old @ steepest)) / before) if iteration else 0.0
        direction = steepest + beta * direction if beta else steepest
        if float(gradient @ direction) <= 0.0:
            direction = steepest
        change = model.forward(direction)
        step = _maximum(model, x, logits, direction, change)
        if step == 0.0:
            break
        x, logits = x + step * direction, logits.add_(change, alpha=step)
        products += 1
    return x, logits, products


def _maximum(
    model: ReducedModel, x: Tensor, logits: Tensor, direction: Tensor, change: Tensor, looks: int = 40
) -> float:
    """τ > 0 near the maximum of Ψ(x + τ d): Newton's method on Ψ', which falls from Ψ'(0) > 0, bisected outside its bracket.

    Stops at |Ψ'(τ)| ≤ Ψ'(0) / 5. From the sixth look on any τ with Ψ'(τ) > 0, an increase for certain, will do.
    """
    chosen = float(change.gather(-1, model.labels[:, None]).double().sum())
    along, square = float(x @ direction), float(direction @ direction)
    low, high, step, first = 0.0, math.inf, 0.0, 0.0
    for look in range(looks):
        mean, variance = _moments(logits, change, step)
        slope, bend = chosen - mean - along - step * square, variance + square
        first = first or slope
        if look and abs(slope) <= 0.2 * first:
            return step
        if slope > 0.0:
            low = step
        else:
            high = step
        if look >= 5 and low > 0.0:
            return low
        step += slope / bend
        if not low < step < high:
            step = 0.5 * (low + high) if high < math.inf else 2.0 * low
    return low


def _moments(logits: Tensor, change: Tensor, step: float, entries: int = 2**18) -> tuple[float, float]:
    """Σ_i of the mean and of the variance of Δ_i under softmax(z_i + τ Δ_i), for logits z and change Δ [N, C].

    In blocks of rows that stay in the cache: otherwise half the time of a large fit goes here.
    """
    mean = variance = 0.0
    rows = max(1, entries // max(1, logits.shape[1]))
    for z, delta in zip(logits.split(rows), change.split(rows), strict=True):
        weighted = torch.add(z, delta, alpha=step).softmax(-1).mul_(delta)
        first = weighted.sum(-1)
        mean += float(first.double().sum())
        variance += float((weighted.mul_(delta).sum(-1) - first.square()).double().sum())
    return mean, max(variance, 0.0)


# -- several modes of one problem ------------------------------------------------------------------------------------


class WarmStart:
    """Modes of one problem at several amplitudes, each started from the one found at the nearest: √p₀ X carries over.

    Attributes:
        direct: take Newton's directions by a Cholesky factor, and Newton's method only.
        iterations: Newton steps so far.
        products: products so far.
        found: the modes x by amplitude.
    """

    def __init__(self, direct: bool):
        self.direct, self.iterations, self.products = direct, 0, 0
        self.found: dict[float, Tensor] = {}

    def mode(self, model: ReducedModel, tolerance: float) -> PosteriorMode:
        """The mode of `model` to an error of `tolerance` (δ/‖x‖)."""
        start, products = self._start(model), 0
        if not self.direct:
            start, logits, products = approach(
                model, start, tolerance if tolerance >= 0.1 * HANDOVER else HANDOVER
            )
        if self.direct or tolerance < 0.1 * HANDOVER:
            mode = find_mode(model, start, tolerance, self.direct)
        else:
            mode = PosteriorMode(
                start, logits, Sites.at(logits), log_joint(model, start, logits), tolerance, 0, 0
            )
        self.found[model.amplitude] = mode.x
        self.iterations += mode.iterations
        self.products += mode.products + products
        return mode

    def _start(self, model: ReducedModel) -> Tensor:
        if not self.found:
            return model.zeros()
        amplitude = min(self.found, key=lambda a: abs(math.log(a / model.amplitude)))
        return self.found[amplitude].to(model.offset) * (amplitude / model.amplitude)
